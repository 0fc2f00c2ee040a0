"use strict";

// Keyboard: j and k walk through the papers, Enter opens the one at hand, / goes to the search field.
function walk() {
  let at = -1;
  const step = (by) => {
    const entries = [...document.querySelectorAll(".entry")];
    if (!entries.length) return;
    entries[at]?.classList.remove("here");
    at = Math.min(entries.length - 1, Math.max(0, at + by));
    entries[at].classList.add("here");
    entries[at].querySelector("h2 a").focus({ preventScroll: true });
    entries[at].scrollIntoView({ block: "nearest" });
  };
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
    else if (event.key === "/") {
      event.preventDefault();
      document.getElementById("q")?.focus();
    }
  });
}

walk();
