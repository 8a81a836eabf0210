// The page at /: what index.html holds comes to life here.
import { Chats } from "./chats.js";
import { Composer } from "./composer.js";
import { byId, counted, element, number, say, toast } from "./dom.js";
import { Messages } from "./messages.js";
import { request, useKeysFrom } from "./server.js";
import * as settings from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Store } from "./store.js";

const MODEL = "edge-llama-model";
const NEARLY_FULL = 0.85;
const store = new Store();
let facts = { version: "", limits: {}, models: [] };

const chosen = () => facts.models.find(({ name }) => name === byId("model").value) ?? facts.models[0] ?? { name: "" };

const chats = new Chats(store, () => ({ model: chosen().name || undefined, settings: settings.settings() }), {
  opened,
  renamed: showTitle,
  changed: (conversation, answer) => conversation === chats.current && messages.changed(answer),
  ended,
  listed: () => sidebar.refresh(),
  notKept: (error) => toast(`This conversation is not kept: ${error.message}`, { kind: "warning" }),
});
const messages = new Messages(byId("messages"), byId("scroller"), byId("jump"), {
  isWriting: (message) => chats.isWriting(message),
  actions: {
    retry: (message) => cutting(message, (conversation) => chats.retry(conversation, message)),
    edit: (message, text) => cutting(message, (conversation) => chats.edit(conversation, message, text)),
  },
});
const sidebar = new Sidebar(store, chats);
const composer = new Composer({ send, stop: () => chats.stop() }, room);
let forgetCut = () => {};

function send(text, images) {
  forgetCut(); // or what is said now would be lost with it
  return chats.send(text, images);
}

/** What answering again or editing cuts off can be had back, until the conversation goes on. */
async function cutting(message, work) {
  forgetCut();
  const conversation = chats.current;
  await chats.stop(conversation);
  if (!chats.holds(conversation, message)) return;
  const before = conversation.messages.slice();
  const later = before.slice(before.indexOf(message) + (message.role === "user" ? 1 : 0));
  const removed = later.filter(({ text }) => text).length;
  const run = () => chats.restore(conversation, before);
  if (removed) forgetCut = toast(`${counted(removed, "message")} replaced.`, { action: { label: "Undo", run } });
  composer.focus();
  await work(conversation);
}

function opened() {
  const { id, messages: shown } = chats.current;
  messages.show(shown);
  byId("welcome").hidden = shown.length > 0;
  showTitle();
  history.replaceState(null, "", shown.length ? `#${id}` : location.pathname);
  composer.setRunning(chats.isRunning());
  showGauge();
  sidebar.refresh();
}

function showTitle() {
  const { title } = chats.current;
  byId("title").textContent = title || "New chat";
  document.title = title ? `${title} · edge-llama` : "edge-llama";
}

function ended(conversation, answer) {
  if (conversation === chats.current) {
    messages.ended(answer);
    composer.setRunning(false);
    showGauge();
  }
  if (answer.error) say(answer.error);
  else say(answer.finish === "stopped" ? "Stopped." : `Answer finished, ${counted(answer.usage?.generated ?? 0, "token")}.`);
  if (!chosen().loaded) readFacts();
}

/** How much of the context the conversation took when it was last answered. */
function showGauge() {
  const used = chats.current.messages.findLast(({ usage }) => usage)?.usage;
  const tokens = used ? used.prompt + used.generated : 0;
  const whole = chosen().n_ctx;
  const gauge = byId("gauge");
  gauge.hidden = !whole;
  if (!whole) return;
  const share = Math.min(1, tokens / whole);
  gauge.style.setProperty("--share", share);
  gauge.classList.toggle("nearly-full", share > NEARLY_FULL);
  const ring = byId("gauge-ring");
  ring.setAttribute("aria-valuenow", Math.round(share * 100));
  ring.setAttribute("aria-valuetext", `${number(tokens)} of ${number(whole)} tokens`);
  byId("gauge-text").textContent = `${number(tokens)} of ${number(whole)} tokens`;
}

/** What pictures may still come with this conversation. */
function room() {
  const { name, vision } = chosen();
  const sent = chats.current.messages.flatMap((message) => message.images ?? []);
  const used = sent.reduce((sum, { blob }) => sum + blob.size, 0);
  const { body_bytes: bodyBytes = Infinity, images = Infinity } = facts.limits;
  return { model: name, vision, bodyBytes, images, used, sent: sent.length };
}

async function readFacts() {
  try {
    facts = await (await request("page/facts.json")).json();
  } catch (error) {
    byId("facts").textContent = "not connected";
    toast(error.message, { kind: "warning", action: { label: "Try again", run: readFacts } });
    return;
  }
  showModels();
}

function showModels() {
  const list = byId("model");
  const before = list.value || localStorage.getItem(MODEL);
  list.replaceChildren(...facts.models.map(({ name }) => element("option", { value: name }, name)));
  if (facts.models.some(({ name }) => name === before)) list.value = before;
  list.disabled = facts.models.length < 2;
  showModel();
}

function showModel() {
  const model = chosen();
  const context = model.n_ctx ? `${number(model.n_ctx)} tokens of context` : null;
  const sight = { true: "text and pictures", false: "text only" }[model.vision];
  const known = model.loaded ? [model.device, context, sight].filter(Boolean).join(" · ") : "";
  byId("facts").textContent = known || "loaded with the first message";
  byId("attach").hidden = model.vision === false;
  settings.showModel(model, facts.version);
  showGauge();
}

/** The key, or null if the person doesn't give one. */
function askForKey(wasWrong) {
  const dialog = byId("key");
  const field = byId("key-field");
  byId("key-problem").textContent = wasWrong ? "That is not this server's key." : "";
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "given" ? field.value.trim() : null), { once: true });
  });
}

function listen() {
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    byId("key").close("given");
  });
  byId("key-cancel").addEventListener("click", () => byId("key").close());
  byId("model").addEventListener("change", () => {
    localStorage.setItem(MODEL, byId("model").value);
    showModel();
  });
  for (const button of document.querySelectorAll("#suggestions button")) {
    button.addEventListener("click", () => composer.suggest(button.textContent.trim()));
  }
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
    if (sidebar.isOver) sidebar.close();
    else chats.stop();
  });
  addEventListener("hashchange", () => openFromAddress());
  addEventListener("pageshow", ({ persisted }) => persisted && location.reload()); // "back" to a page that was left
  addEventListener("pagehide", () => chats.leave());
}

async function openFromAddress() {
  const id = location.hash.slice(1);
  if (id === chats.current.id) return;
  if (!id || !(await chats.open(id))) chats.start();
}

async function begin() {
  useKeysFrom(askForKey);
  settings.prepare();
  listen();
  await store.open((id) => chats.changedElsewhere(id));
  if (store.problem) toast("This browser keeps no conversations here: they end with the page.", { kind: "warning" });
  await openFromAddress();
  await readFacts();
  composer.enable();
}

await begin();
