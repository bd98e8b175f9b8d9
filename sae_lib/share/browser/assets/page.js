"use strict";
// The page: which view is open is in the address, so that a view can be linked and the back button works.

const data = JSON.parse(document.getElementById("data").textContent);
document.getElementById("title").textContent = data.title;
document.getElementById("facts").append(
  ...data.facts.flatMap(([name, value]) => [node("dt", {}, name), node("dd", {}, value)]));
const latents = new Latents(data);
const absorption = new Absorption(data);
document.getElementById("tab-absorption").hidden = !data.letters.length;

function route() {
  const [view, name] = location.hash.slice(1).split("-");
  const words = view === "absorption" && data.letters.length > 0;
  for (const [id, on] of [["latents", !words], ["absorption", words]]) {
    document.getElementById(`view-${id}`).hidden = !on;
    const tab = document.getElementById(`tab-${id}`);
    if (on) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  if (words) absorption.show(data.letters.some((reading) => reading.letter === name) ? name : undefined);
  else latents.show(view === "latent" && Number(name) < latents.entries.length ? Number(name) : undefined);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target === latents.search;
  const words = !document.getElementById("view-absorption").hidden;
  if (event.key === "/" && !typing && !words) {
    event.preventDefault();
    latents.search.focus();
    latents.search.select();
  }
  if (words && ["ArrowLeft", "ArrowRight"].includes(event.key)) absorption.step(event.key === "ArrowRight" ? 1 : -1);
  if (!words && !typing && event.target === document.body && ["ArrowUp", "ArrowDown"].includes(event.key)) {
    latents.list.focus();
    latents.list.dispatchEvent(new KeyboardEvent("keydown", { key: event.key }));
    event.preventDefault();
  }
});
addEventListener("hashchange", route);
route();
