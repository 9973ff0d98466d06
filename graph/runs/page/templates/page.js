"use strict";
// Tabs: arrow keys, Home and End move between them; without this script all panels are shown.
for (const list of document.querySelectorAll('[role="tablist"]')) {
  const tabs = [...list.querySelectorAll('[role="tab"]')];
  const show = (chosen, focus) => {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      tab.tabIndex = tab === chosen ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
    if (focus) chosen.focus();
  };
  for (const tab of tabs) tab.addEventListener("click", () => show(tab, false));
  list.addEventListener("keydown", (event) => {
    const at = tabs.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    show(tabs[(to + tabs.length) % tabs.length], true);
  });
  show(tabs[0], false);
}

// Filters of the test rows.
const filters = document.querySelector(".filters");
if (filters) {
  const rows = [...document.querySelectorAll(".rows > li")];
  const total = document.querySelector(".rows").dataset.total;
  const fits = (row, wanted) => {
    const fails = JSON.parse(row.dataset.fails);
    const [how, ...check] = wanted.check.split(" ");
    return (!wanted.outcome || row.dataset.outcome === wanted.outcome)
      && (!wanted.check || fails.includes(check.join(" ")) === (how === "fails"))
      && (!wanted.class || row.dataset.class === wanted.class)
      && (!wanted.text || row.textContent.toLowerCase().includes(wanted.text.toLowerCase()));
  };
  const apply = () => {
    const wanted = { outcome: "", check: "", class: "", text: "", ...Object.fromEntries(new FormData(filters)) };
    let shown = 0;
    for (const row of rows) shown += !(row.hidden = !fits(row, wanted));
    filters.querySelector("output").textContent = `${shown} of ${total} rows`;
    document.querySelector(".empty").hidden = shown > 0;
  };
  for (const kind of ["input", "change"]) filters.addEventListener(kind, apply);
  filters.addEventListener("reset", () => setTimeout(apply));
  filters.addEventListener("submit", (event) => event.preventDefault());
  apply();
}

// The section that is being read, in the navigation.
const links = new Map([...document.querySelectorAll(".sections a")].map((link) => [link.hash.slice(1), link]));
const seen = new Set();
const watch = new IntersectionObserver((entries) => {
  for (const entry of entries) seen[entry.isIntersecting ? "add" : "delete"](entry.target.id);
  const current = [...links.keys()].find((id) => seen.has(id));
  for (const [id, link] of links) id === current ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
}, { rootMargin: "-30% 0px -60% 0px" });
for (const id of links.keys()) watch.observe(document.getElementById(id));

// A page whose run is at work reads itself anew; what was opened stays open.
const live = document.querySelector("[data-live]");
const place = `nslora ${location.pathname}`;
for (const id of JSON.parse(sessionStorage.getItem(place) || "[]")) document.getElementById(id)?.setAttribute("open", "");
if (live) {
  const button = live.querySelector("[data-pause]");
  const paused = () => button.getAttribute("aria-pressed") === "true";
  button.addEventListener("click", () => button.setAttribute("aria-pressed", String(!paused())));
  setInterval(() => {
    if (paused()) return;
    sessionStorage.setItem(place, JSON.stringify([...document.querySelectorAll("details[open][id]")].map((each) => each.id)));
    location.reload();
  }, live.dataset.live * 1000);
}
