// The console's own script: ages that tick, the state of the live connection, and refusals said aloud.
"use strict";

(() => {
  const UNITS = [[86400, "d"], [3600, "h"], [60, "min"]];
  let offset = 0; // the hub's clock minus ours, in seconds

  function age(seconds) {
    for (const [length, unit] of UNITS) {
      if (seconds >= length) return `${Math.floor(seconds / length)} ${unit} ago`;
    }
    return seconds < 5 ? "now" : `${Math.floor(seconds)} s ago`;
  }

  function tick(root) {
    const now = Date.now() / 1000 + offset;
    for (const element of root.querySelectorAll("time[data-at]")) {
      const text = age(Math.max(0, now - Number(element.dataset.at)));
      if (element.textContent !== text) element.textContent = text;
    }
  }

  function live(state, text) {
    const element = document.getElementById("live");
    element.dataset.state = state;
    element.querySelector(".text").textContent = text;
  }

  function notice(text) {
    const element = document.getElementById("notice");
    element.textContent = text;
    element.hidden = !text;
    if (text) setTimeout(() => { if (element.textContent === text) element.hidden = true; }, 8000);
  }

  const body = document.body;
  body.addEventListener("htmx:sseOpen", () => live("up", "Live"));
  body.addEventListener("htmx:sseError", () => live("down", "Reconnecting…"));
  body.addEventListener("htmx:sseClose", () => live("down", "Not live"));
  body.addEventListener("htmx:afterSwap", (event) => tick(event.target));
  body.addEventListener("htmx:sendError", () => notice("The hub cannot be reached."));
  body.addEventListener("htmx:responseError", (event) => {
    let message = event.detail.xhr.statusText;
    try { message = JSON.parse(event.detail.xhr.responseText).error.message; } catch (_error) { /* keep it */ }
    notice(message);
  });

  const served = document.querySelector("meta[name=served-at]");
  if (served) offset = Number(served.content) - Date.now() / 1000;
  tick(document);
  setInterval(() => tick(document), 1000);
})();
