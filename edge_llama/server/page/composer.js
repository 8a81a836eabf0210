// Where messages are written: text, and pictures by a button, by dropping them on the page, or from the clipboard.
import { byId, bytes, element, iconButton, toast } from "./dom.js";

const TYPES = new Set(["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/avif"]);
const TALLEST = 240; // pixels
const INFLATION = 4 / 3; // of base64

export class Composer {
  #images = []; // {name, blob, url}

  /** `actions`: send(text, images), stop(); `room()` gives {model, vision, bodyBytes, images, used, sent}. */
  constructor(actions, room) {
    Object.assign(this, { actions, room, field: byId("prompt"), file: byId("attach-file") });
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    byId("stop").addEventListener("click", () => actions.stop());
    byId("attach").addEventListener("click", () => this.file.click());
    this.file.addEventListener("change", () => {
      this.attach(this.file.files);
      this.file.value = "";
    });
    this.#listenToField();
    this.#listenToDrops();
  }

  /** Whether an answer is being written: then there is a button to stop it instead of the one to send. */
  setRunning(isRunning) {
    const hadFocus = document.activeElement === byId(isRunning ? "send" : "stop");
    byId("send").hidden = isRunning;
    byId("stop").hidden = !isRunning;
    if (hadFocus) this.field.focus();
    this.#isRunning = isRunning;
  }
  #isRunning = false;

  focus() {
    this.field.focus();
  }

  /** From now on messages can be written: before, nobody would have sent them. */
  enable() {
    this.field.disabled = false;
    this.focus();
  }

  /** Put a text in, to be changed or sent. */
  suggest(text) {
    this.field.value = text;
    this.#fit();
    this.focus();
  }

  #listenToField() {
    this.field.addEventListener("input", () => this.#fit());
    this.field.addEventListener("keydown", (event) => {
      // Enter also ends the word that an input method composes.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#submit();
    });
    this.field.addEventListener("paste", (event) => {
      const files = event.clipboardData?.files ?? [];
      // A cell of a spreadsheet is copied as a text and as a picture of it: the text is meant.
      if (!files.length || event.clipboardData.getData("text/plain")) return;
      event.preventDefault();
      this.attach(files);
    });
  }

  #listenToDrops() {
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    let depth = 0; // entered elements within one another
    const mark = (change) => {
      depth = Math.max(0, depth + change);
      byId("drop").hidden = depth === 0;
    };
    addEventListener("dragenter", (event) => hasFiles(event) && mark(1));
    addEventListener("dragleave", (event) => hasFiles(event) && mark(-1));
    addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
    addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault(); // or the browser leaves the page for the picture
      mark(-depth);
      this.attach(event.dataTransfer.files);
    });
  }

  /** Take these files with the next message, or say why not. */
  attach(files) {
    for (const file of files) {
      const why = this.#refusal(file);
      if (why) toast(`${file.name || "The picture"} was not attached: ${why}`, { kind: "warning" });
      else this.#images.push({ name: file.name, blob: file, url: URL.createObjectURL(file) });
    }
    this.#showImages();
    this.focus();
  }

  #refusal(file) {
    const { model, vision, bodyBytes, images, used, sent } = this.room();
    if (vision === false) return `${model} reads text only.`;
    if (!TYPES.has(file.type)) return "it is no PNG, JPEG, WebP, GIF, BMP or AVIF picture.";
    if (sent + this.#images.length >= images) return `a conversation may have ${images} pictures.`;
    const mine = this.#images.reduce((sum, image) => sum + image.blob.size, 0);
    if ((used + mine + file.size) * INFLATION > bodyBytes) {
      const room = Math.max(0, bodyBytes / INFLATION - used - mine);
      return `it has ${bytes(file.size)}, and this conversation has room for ${bytes(room)} more.`;
    }
    return "";
  }

  #showImages() {
    const remove = (image) => () => {
      URL.revokeObjectURL(image.url);
      this.#images = this.#images.filter((each) => each !== image);
      this.#showImages();
      this.focus();
    };
    byId("attachments").replaceChildren(
      ...this.#images.map((image) =>
        element(
          "li",
          {},
          element("img", { src: image.url, alt: image.name || "Picture" }),
          iconButton("cross", `Remove ${image.name || "the picture"}`, remove(image)),
        ),
      ),
    );
  }

  #submit() {
    const text = this.field.value.trim();
    if (this.#isRunning || (!text && !this.#images.length)) return;
    const images = this.#images.map(({ name, blob, url }) => {
      URL.revokeObjectURL(url);
      return { name, blob };
    });
    this.#images = [];
    this.#showImages();
    this.field.value = "";
    this.#fit();
    this.actions.send(text, images);
  }

  /** As tall as its text, up to a point. */
  #fit() {
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(TALLEST, this.field.scrollHeight)}px`;
  }
}
