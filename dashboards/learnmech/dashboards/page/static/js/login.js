// The dialog that asks for the collector's token.

import { h } from "./dom.js";

/** Asks for the token until one is given; `refused` tells that the last one was wrong. Returns a promise of it. */
export function askForToken(refused) {
  return new Promise((resolve) => {
    const field = h("input", { type: "password", autocomplete: "off", required: true, "aria-label": "Token", placeholder: "Token" });
    const dialog = h("dialog.login", {},
      h("form", { onsubmit: (event) => {
        event.preventDefault();
        dialog.close();
        dialog.remove();
        resolve(field.value.trim());
      } },
      h("h2", {}, "This collector asks for a token"),
      h("p", {}, refused
        ? "The collector refused that token. It is the one it was started with."
        : "It is the one the collector was started with: the file of --token-file, or LEARNMECH_TOKEN. It is kept in this tab only."),
      field, h("button.primary", { type: "submit" }, "Open")));
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    document.body.append(dialog);
    dialog.showModal();
    field.focus();
  });
}
