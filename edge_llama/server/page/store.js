// Conversations are kept in this browser, in IndexedDB, and nowhere else. Where a browser keeps nothing (private
// windows of some), they live as long as the page.

const NAME = "edge-llama";
const STORE = "conversations";

const done = (asked) =>
  new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });

/** A new conversation: its messages are {role: "user", text, images: [{name, blob}]} and answers (answer.js). */
export function emptyConversation() {
  const now = Date.now();
  return { id: randomId(), title: "", created: now, updated: now, messages: [] };
}

/** crypto.randomUUID is not there on pages that came by plain HTTP from another machine. */
export function randomId() {
  const random = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Store {
  #database = null;
  #memory = new Map();
  #others = new BroadcastChannel(NAME);

  /** Why nothing is kept beyond the page; null if all is. */
  problem = null;

  /** Open it. `changed(id)` is called when another tab has changed a conversation. */
  async open(changed) {
    this.#others.onmessage = ({ data }) => changed(data);
    try {
      const opening = indexedDB.open(NAME, 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id" });
      this.#database = await done(opening);
    } catch (error) {
      this.problem = error;
    }
  }

  #objects() {
    return this.#database.transaction(STORE).objectStore(STORE);
  }

  /** Committed at once: a page that is being left has no time to find out that nothing follows. */
  #write(change) {
    const transaction = this.#database.transaction(STORE, "readwrite");
    change(transaction.objectStore(STORE));
    transaction.commit();
    return new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error);
    });
  }

  /** All conversations, the last changed first. */
  async all() {
    const found = this.#database ? await done(this.#objects().getAll()) : [...this.#memory.values()];
    return found.sort((one, other) => other.updated - one.updated);
  }

  /** One conversation, or undefined. */
  async get(id) {
    return this.#database ? done(this.#objects().get(id)) : this.#memory.get(id);
  }

  /** Keep it as it is now; other tabs are not told of what is only on its way. */
  async put(conversation, { isOnItsWay = false } = {}) {
    if (this.#database) await this.#write((objects) => objects.put(conversation));
    else this.#memory.set(conversation.id, conversation);
    if (!isOnItsWay) this.#others.postMessage(conversation.id);
  }

  async remove(id) {
    if (this.#database) await this.#write((objects) => objects.delete(id));
    else this.#memory.delete(id);
    this.#others.postMessage(id);
  }
}
