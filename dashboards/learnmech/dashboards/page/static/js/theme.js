// Runs before the first paint (a classic script): light or dark as the reader chose, else as the system says.

globalThis.learnmechTheme = {
  /** What the reader chose: "system", "light" or "dark". */
  chosen() {
    try {
      return localStorage.getItem("learnmech.theme") ?? "system";
    } catch {
      return "system"; // storage is blocked
    }
  },

  /** Puts the theme on the page; called again when the choice or the system's preference changes. */
  apply() {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const chosen = this.chosen();
    document.documentElement.dataset.theme = chosen === "system" ? (dark ? "dark" : "light") : chosen;
  },

  /** Remembers a choice in this browser and applies it. */
  choose(name) {
    try {
      localStorage.setItem("learnmech.theme", name);
    } catch {
      // Storage is blocked: the choice cannot be kept.
    }
    this.apply();
  },
};
globalThis.learnmechTheme.apply();
