// The list of conversations: search, rename, delete, and all of them as a file.
import { byId, counted, element, iconButton, number, say, toast } from "./dom.js";
import { exported, imported } from "./exchange.js";

const DAY_MS = 86_400_000;
const narrow = matchMedia("(max-width: 760px)");

export class Sidebar {
  #conversations = [];
  #renaming = null; // the id of the conversation whose name is being written
  #shown = ""; // what the list was built of

  constructor(store, chats) {
    Object.assign(this, { store, chats });
    byId("new-chat").addEventListener("click", () => {
      chats.start();
      if (narrow.matches) this.close();
      byId("prompt").focus();
    });
    byId("search").addEventListener("input", () => this.#show());
    byId("toggle-sidebar").addEventListener("click", () => this.#toggle());
    byId("close-sidebar").addEventListener("click", () => this.close());
    byId("scrim").addEventListener("click", () => this.close());
    byId("export").addEventListener("click", () => this.#export());
    byId("import").addEventListener("click", () => byId("import-file").click());
    byId("import-file").addEventListener("change", (event) => this.#import(event.target));
    narrow.addEventListener("change", () => this.#set(!narrow.matches));
    this.#set(!narrow.matches);
  }

  get isOver() {
    return narrow.matches && this.isOpen;
  }

  close() {
    this.#set(false);
    byId("toggle-sidebar").focus();
  }

  #toggle() {
    this.#set(!this.isOpen);
    if (this.isOver) byId("new-chat").focus();
  }

  #set(isOpen) {
    this.isOpen = isOpen;
    document.body.classList.toggle("with-sidebar", isOpen);
    byId("toggle-sidebar").setAttribute("aria-expanded", String(isOpen));
    byId("scrim").hidden = !this.isOver;
    // What is under the scrim is not for the keyboard.
    document.querySelector("main").inert = this.isOver;
  }

  async refresh() {
    this.#conversations = await this.store.all();
    this.#show();
  }

  #show() {
    if (this.#renaming) return; // or what is being written would be lost
    const words = byId("search").value.trim().toLowerCase();
    const found = this.#conversations.filter((each) => !words || matches(each, words));
    const now = JSON.stringify([words, this.chats.current.id, found.map((each) => [each.id, each.title, ageOf(each)])]);
    if (now === this.#shown) return; // who has the focus in it keeps it
    this.#shown = now;
    const sections = [...grouped(found)].map(([age, members]) =>
      element("section", {}, element("h2", {}, age), element("ul", {}, ...members.map((each) => this.#row(each)))),
    );
    const none = words ? "No conversation has this in it." : "Your conversations are kept in this browser alone.";
    byId("conversations").replaceChildren(...(found.length ? sections : [element("p", { class: "hint" }, none)]));
  }

  #row(conversation) {
    const isCurrent = conversation.id === this.chats.current.id;
    const open = async () => {
      if (!(await this.chats.open(conversation.id))) return;
      if (narrow.matches) this.close();
      byId("prompt").focus();
    };
    const row = element("li", { class: isCurrent ? "current" : null });
    const title = conversation.title || "Untitled";
    row.append(
      element("button", { type: "button", class: "row", "aria-current": isCurrent ? "page" : null, title, click: open }, title),
      iconButton("edit", `Rename ${title}`, () => this.#rename(row, conversation)),
      iconButton("bin", `Delete ${title}`, () => this.#remove(conversation)),
    );
    return row;
  }

  #rename(row, conversation) {
    this.#renaming = conversation.id;
    const field = element("input", { type: "text", "aria-label": "Name of the conversation", maxlength: "200" });
    field.value = conversation.title;
    const end = async (title) => {
      if (this.#renaming === null) return;
      this.#renaming = null;
      this.#shown = "";
      if (title.trim()) await this.chats.rename(conversation, title.trim());
      await this.refresh();
      byId("conversations").querySelector(`.current .row`)?.focus();
    };
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" && !event.isComposing) end(field.value);
      if (event.key === "Escape") end("");
    });
    field.addEventListener("blur", () => end(field.value));
    row.replaceChildren(field);
    field.select();
    field.focus();
  }

  async #remove(conversation) {
    const removed = await this.chats.remove(conversation);
    byId("search").focus();
    const run = () => this.chats.bringBack(removed);
    toast(`“${removed.title}” was deleted.`, { action: { label: "Undo", run } });
  }

  async #export() {
    const file = await exported(await this.store.all());
    const url = URL.createObjectURL(file);
    const day = new Date().toISOString().slice(0, 10);
    element("a", { href: url, download: `edge-llama-conversations-${day}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    say("Exported");
  }

  async #import(field) {
    const [file] = field.files;
    field.value = "";
    if (!file) return;
    try {
      const found = imported(await file.text());
      const kept = await this.chats.bringIn(found);
      const skipped = found.length - kept;
      const why = skipped ? ` ${number(skipped)} skipped: what is here is as new or newer.` : "";
      toast(`${counted(kept, "conversation")} imported.${why}`);
    } catch (error) {
      toast(`${file.name} was not imported: ${error.message}.`, { kind: "warning" });
    }
    await this.refresh();
  }
}

const matches = ({ title, messages }, words) =>
  title.toLowerCase().includes(words) || messages.some(({ text }) => text.toLowerCase().includes(words));

function grouped(conversations) {
  const groups = new Map();
  for (const each of conversations) {
    const age = ageOf(each);
    if (!groups.has(age)) groups.set(age, []);
    groups.get(age).push(each);
  }
  return groups;
}

function ageOf({ updated }) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (updated >= midnight) return "Today";
  if (updated >= midnight - DAY_MS) return "Yesterday";
  return updated >= midnight - 7 * DAY_MS ? "Last seven days" : "Older";
}
