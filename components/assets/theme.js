"use strict";
// Light and dark: the button, the system's own choice, and what has to be painted anew.

function makeTheme(repaint) {
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
    root.dataset.theme = dark ? "light" : "dark";
    repaint();
  });
  system.addEventListener("change", repaint);
}
