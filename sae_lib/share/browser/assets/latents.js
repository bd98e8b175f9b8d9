"use strict";
// The list of latents and the page of one latent. Text reaches the page as text only, never as markup.

const ROW = 30; // height of a row, as in the style
const COLUMNS = [
  ["latent", "latent", "number"], ["letter", "letter", ""], [null, "strongest on", ""],
  ["maximum", "max", "number"], ["density", "density", "number"], ["stability", "seeds", "number"],
];

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const spaced = (token) => token.replace(/^ /, "␣");
const share = (density) =>
  density === 0 ? "never" : density < 0.0001 ? "<0.01 %" : `${(100 * density).toFixed(density < 0.01 ? 2 : 1)} %`;
const cosine = (value) => (value === null ? "–" : value.toFixed(2));

class Latents {
  constructor(data) {
    this.data = data;
    this.entries = data.density.map((density, latent) => ({
      latent, density, maximum: data.maximum[latent], stability: this.stability(latent),
      roles: data.roles[latent] || [],
      peaks: this.peaks(latent).map((token) => token.trim().toLowerCase()),
      promoted: this.tokens(data.promoted[latent]).map(([token]) => token.trim().toLowerCase()),
    }));
    this.key = data.letters.length ? "letter" : "density";
    this.falling = !data.letters.length;
    this.list = document.getElementById("list");
    this.rows = document.getElementById("rows");
    this.search = document.getElementById("search");
    this.chosen = null;
    this.search.addEventListener("input", () => this.refresh());
    this.search.addEventListener("keydown", (event) => this.onKey(event));
    this.list.addEventListener("keydown", (event) => this.onKey(event));
    this.list.addEventListener("scroll", () => this.draw());
    this.list.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) location.hash = `latent-${row.dataset.latent}`;
    });
    new ResizeObserver(() => this.draw()).observe(this.list);
    this.refresh();
  }

  // Mean over the other seeds; null without any, and for a latent that never fires: nothing trained its direction.
  stability(latent) {
    const found = this.data.match.cosines.map((ofSeed) => ofSeed[latent]).filter((value) => value !== null);
    return found.length && this.data.density[latent] > 0 ? found.reduce((a, b) => a + b) / found.length : null;
  }

  piece(context, position) { return this.data.pieces[this.data.contexts[context][position]]; }
  peaks(latent) {
    return [...new Set(this.data.examples[latent].map(([context, , , peak]) => this.piece(context, peak)))];
  }
  tokens(pairs) {
    return pairs.flatMap((_, i) => (i % 2 ? [] : [[this.data.pieces[pairs[i]], pairs[i + 1]]]));
  }

  refresh() {
    this.found = find(this.entries, this.search.value, this.key, this.falling);
    const [n, all] = [this.found.length.toLocaleString("en"), this.entries.length.toLocaleString("en")];
    document.getElementById("count").value = n === all ? `${all} latents` : `${n} of ${all}`;
    document.getElementById("columns").replaceChildren(...COLUMNS.map(([key, name, kind]) => {
      if (!key) return node("span", { class: "soft" }, node("small", {}, name));
      const on = key === this.key;
      const button = node("button", { type: "button", class: kind, "aria-pressed": on, "data-key": key,
        title: `sort by ${name}` }, name + (on ? (this.falling ? " ▾" : " ▴") : ""));
      button.addEventListener("click", () => this.sort(key));
      return button;
    }));
    this.rows.style.height = `${this.found.length * ROW}px`;
    this.list.scrollTop = 0;
    this.draw();
  }

  sort(key) {
    this.falling = key === this.key ? !this.falling : ["density", "maximum", "stability"].includes(key);
    this.key = key;
    this.refresh();
    document.querySelector(`#columns [data-key=${key}]`).focus();
  }

  // Only the rows in sight are in the page.
  draw() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW) - 5);
    const last = Math.ceil((this.list.scrollTop + this.list.clientHeight) / ROW) + 5;
    this.rows.replaceChildren(...this.found.slice(first, last).map((entry, i) => this.row(entry, first + i)));
    const shown = this.chosen !== null && document.getElementById(`row-${this.chosen}`);
    if (shown) this.list.setAttribute("aria-activedescendant", shown.id);
    else this.list.removeAttribute("aria-activedescendant");
  }

  row(entry, place) {
    const { latent } = entry;
    const row = node("div", { class: "row", role: "option", id: `row-${latent}`, "data-latent": latent,
      "aria-selected": latent === this.chosen, "aria-posinset": place + 1, "aria-setsize": this.found.length },
      node("span", { class: "number" }, `${latent}`),
      node("span", {}, ...this.badges(latent).slice(0, 1)),
      node("span", { class: "peaks" }, this.peaks(latent).slice(0, 8).map(spaced).join("  ")),
      node("span", { class: "number" }, entry.maximum ? entry.maximum.toFixed(1) : "–"),
      node("span", { class: "number" }, share(entry.density)),
      node("span", { class: "number" }, cosine(entry.stability)));
    row.style.top = `${place * ROW}px`;
    return row;
  }

  badges(latent) {
    const names = { main: "main latent of", split: "split of", absorber: "absorbs words of" };
    return (this.data.roles[latent] || []).map(([kind, letter]) =>
      node("span", { class: `role ${kind}`, title: `${names[kind]} ${letter.toUpperCase()}` }, letter.toUpperCase()));
  }

  onKey(event) {
    const page = Math.max(1, Math.floor(this.list.clientHeight / ROW) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page };
    const ends = event.currentTarget === this.list ? { Home: 0, End: this.found.length - 1 } : { Enter: 0 };
    if (!(event.key in steps) && !(event.key in ends)) return;
    event.preventDefault();
    const at = this.found.findIndex((entry) => entry.latent === this.chosen);
    const to = event.key in ends ? ends[event.key] : at < 0 ? 0 : at + steps[event.key];
    const entry = this.found[Math.min(Math.max(to, 0), this.found.length - 1)];
    if (entry) location.hash = `latent-${entry.latent}`;
  }

  show(latent) {
    this.chosen = latent ?? this.chosen ?? (this.found[0] || this.entries[0]).latent;
    const place = this.found.findIndex((entry) => entry.latent === this.chosen);
    if (place >= 0) {
      const top = place * ROW;
      if (top < this.list.scrollTop) this.list.scrollTop = top;
      if (top + ROW > this.list.scrollTop + this.list.clientHeight)
        this.list.scrollTop = top + ROW - this.list.clientHeight;
    }
    this.draw();
    const page = document.getElementById("latent");
    page.replaceChildren(...this.page(this.chosen));
    page.scrollTop = 0;
  }

  page(latent) {
    const { data } = this;
    const entry = this.entries[latent];
    const examples = data.examples[latent];
    const figure = (name, value, hint, beside) =>
      node("div", { title: hint }, name, node("b", {}, value), node("small", { class: "soft" }, beside || ""));
    const seeds = data.match.cosines.map((ofSeed, i) => `seed ${data.match.seeds[i]}: ${cosine(ofSeed[latent])}`);
    const nearest = data.nearest && data.nearest[latent];
    const made = [
      node("h2", {}, `Latent ${latent} `, ...this.badges(latent).flatMap((badge) => [badge, " "])),
      node("div", { class: "figures" },
        figure("density", share(entry.density), "share of the text's tokens on which it fires"),
        figure("strongest activation", entry.maximum.toFixed(2), "for a direction of unit length"),
        ...(seeds.length ? [figure("found by other seeds", cosine(entry.stability),
          `cosine with the ${data.match.kind} counterpart; ${seeds.join(", ")}`,
          `random directions: ${cosine(data.match.chance)}`)] : []),
        ...(nearest ? [figure("nearest letter", `${nearest[0].toUpperCase()} ${cosine(nearest[1])}`,
          "the letter whose probe has the largest cosine with its direction")] : [])),
      ...this.letterRole(latent),
    ];
    if (!examples.length) made.push(node("p", {}, "This latent never fires in the text."));
    for (const [kind, title, hint] of [[1, "Strongest contexts", "underlined: the strongest token"],
      [0, "Elsewhere in its range", "contexts evenly spaced in rank"]]) {
      const shown = examples.filter((example) => example[4] === kind);
      if (shown.length) made.push(node("h3", {}, title, node("small", {}, hint)),
        ...shown.map((example) => this.example(latent, example)));
    }
    made.push(
      node("div", { class: "pair" },
        node("div", {}, node("h3", {}, "Tokens it promotes", node("small", {}, "direct path to the logits")),
          this.effects(data.promoted[latent])),
        node("div", {}, node("h3", {}, "Tokens it suppresses"), this.effects(data.suppressed[latent]))),
      node("p", { class: "note" }, "Direction × unembedding, minus its mean over the vocabulary. Later blocks and the "
        + "final norm are left out, so read the order and not the size."),
      node("h3", {}, "Nearest latents", node("small", {}, "cosine of the directions")), this.neighbours(latent));
    return made;
  }

  letterRole(latent) {
    return (this.data.roles[latent] || []).map(([kind, letter, words]) => {
      const name = letter.toUpperCase();
      const link = node("a", { href: `#absorption-${letter}` }, `words of ${name}`);
      if (kind === "main") return node("p", {}, `The main latent of the first letter ${name}: `, link, ".");
      if (kind === "split") return node("p", {}, `Stands for the first letter ${name} together with its main latent: `, link, ".");
      const shown = words.slice(0, 12).map(spaced).join("  ");
      return node("p", {}, `Absorbs the letter ${name} of ${words.length} ${words.length > 1 ? "words" : "word"}: `,
        node("span", { class: "word" }, shown + (words.length > 12 ? " …" : "")), " (", link, ")");
    });
  }

  example(latent, [context, start, stop, peak, , levels]) {
    const maximum = this.data.maximum[latent];
    const on = new Map();
    for (let i = 0; i < levels.length; i += 2) on.set(start + levels[i], levels[i + 1] / 1000);
    const tokens = [];
    for (let position = start; position < stop; position++) {
      const level = on.get(position);
      const token = node("span", {}, this.piece(context, position));
      if (level !== undefined) {
        token.className = position === peak ? "on peak" : "on";
        token.title = (level * maximum).toFixed(2);
        token.style.background = `rgba(var(--own-rgb), ${(0.08 + 0.57 * level).toFixed(3)})`;
      }
      tokens.push(token);
    }
    const strength = ((on.get(peak) || 0) * maximum).toFixed(2);
    return node("div", { class: "example" }, node("span", { class: "number" }, strength),
      node("span", { class: "token" }, start > 0 ? "…" : "", ...tokens, stop < this.data.contexts[context].length ? "…" : ""));
  }

  effects(pairs) {
    return node("ul", { class: "effects" }, ...this.tokens(pairs).map(([token, value]) =>
      node("li", {}, node("span", { class: "token" }, spaced(token)),
        node("small", {}, (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2)))));
  }

  neighbours(latent) {
    const pairs = this.data.neighbours[latent];
    const rows = pairs.flatMap((other, i) => (i % 2 ? [] : [node("tr", {},
      node("td", { class: "number" }, cosine(pairs[i + 1])),
      node("td", {}, node("a", { href: `#latent-${other}` }, `latent ${other}`)),
      node("td", {}, ...this.badges(other).flatMap((badge) => [badge, " "])),
      node("td", { class: "word" }, this.peaks(other).slice(0, 8).map(spaced).join("  ")))]));
    return node("table", {}, node("tbody", {}, ...rows));
  }
}
