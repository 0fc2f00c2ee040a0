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

// A run under way: its log grows and its state changes; at the end the page is loaded again, with what was measured.
function watch() {
  const run = document.querySelector("[data-events]");
  if (!run) return;
  const log = run.querySelector(".log");
  const state = run.querySelector(".state");
  const again = () => location.replace(location.pathname);
  const source = new EventSource(run.dataset.events);
  log.scrollTop = log.scrollHeight;
  source.addEventListener("log", (event) => {
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    log.append(event.data + "\n");
    if (atEnd) log.scrollTop = log.scrollHeight;
  });
  source.addEventListener("state", (event) => {
    if (state.textContent !== event.data) state.textContent = event.data;
  });
  source.addEventListener("done", () => {
    source.close();
    again();
  });
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(again, 5000);
  });
}

// A form that was refused without leaving the page (too old, too often) is sent once more as a form, and so says why.
document.addEventListener("htmx:responseError", (event) => {
  if (event.detail.elt instanceof HTMLFormElement) event.detail.elt.submit();
});

walk();
watch();
