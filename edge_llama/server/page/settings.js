// How answers are sampled, and what is known of the model. Kept in this browser; an empty field is as the model has it.
import { byId, bytes, element, number } from "./dom.js";

const NAME = "edge-llama-settings";
const FIELDS = ["temperature", "top_p", "top_k", "min_p", "seed", "max_tokens"];

const UNSET = { seed: "random", max_tokens: "as many as it takes" };

const field = (name) => byId(`set-${name}`);

/** What the fields say, as the API's request has it, and `system`. */
export function settings() {
  const found = { system: field("system").value.trim() };
  for (const name of FIELDS) {
    if (field(name).value !== "" && field(name).validity.valid) found[name] = field(name).valueAsNumber;
  }
  if (field("reasoning_effort").value) found.reasoning_effort = field("reasoning_effort").value;
  return found;
}

/** Have the dialog filled with what was kept, and keep what changes. */
export function prepare() {
  const dialog = byId("settings");
  fill(kept());
  dialog.addEventListener("input", ({ target }) => {
    const note = byId(`${target.id}-problem`);
    if (note) note.textContent = target.validity.valid ? "" : target.validationMessage;
    localStorage.setItem(NAME, JSON.stringify(settings()));
  });
  byId("open-settings").addEventListener("click", () => dialog.showModal());
  byId("close-settings").addEventListener("click", () => dialog.close());
  byId("reset-settings").addEventListener("click", () => {
    localStorage.removeItem(NAME);
    fill({});
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside it
}

function kept() {
  try {
    return JSON.parse(localStorage.getItem(NAME)) ?? {};
  } catch {
    return {};
  }
}

function fill(values) {
  for (const name of [...FIELDS, "system", "reasoning_effort"]) {
    field(name).value = values[name] ?? "";
    const note = byId(`set-${name}-problem`);
    if (note) note.textContent = "";
  }
}

/** Show what is known of the model in use: what it does where a field is empty, and what it runs on. */
export function showModel(model, version) {
  for (const name of FIELDS) {
    field(name).placeholder = String(model.sampling?.[name] ?? UNSET[name] ?? "as the model recommends");
  }
  const rows = [
    ["Model", model.name],
    ["File", model.file],
    ["Size", model.bytes && bytes(model.bytes)],
    ["Engine", model.engine],
    ["Device", model.device && `${model.device} (${model.device_reason})`],
    ["Context", model.n_ctx && `${number(model.n_ctx)} tokens`],
    ["Pictures", { true: "yes", false: "no, text only" }[model.vision]],
    ["Server", `edge-llama ${version}`],
  ];
  byId("model-facts").replaceChildren(
    ...rows
      .filter(([, value]) => value)
      .map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, String(value)))),
  );
  byId("thinking-row").hidden = model.thinks === false;
  byId("model-note").textContent = model.loaded ? "" : "It is loaded with the first message.";
}
