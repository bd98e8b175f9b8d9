"use strict";
// Absorption, word by word.

const FIRST_WORDS = 40; // shown before the reader asks for all
const SCALE = 1.5; // the bar ends at this multiple of P
const percent = (shares) => `${(100 * shares.sort((a, b) => a - b)[Math.floor(shares.length / 2)]).toFixed(0)} %`;
const VERDICTS = {
  absorbed: "absorbed, own silent", shared: "shared", fires: "fires", missed: "missed",
};

class Absorption {
  constructor(data) {
    this.data = data;
    this.byLetter = new Map(data.letters.map((reading) => [reading.letter, reading]));
    this.more = document.getElementById("more");
    this.more.addEventListener("click", () => this.words(this.byLetter.get(this.letter).words.length));
    this.strip = document.getElementById("letters");
    this.strip.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) location.hash = `absorption-${button.dataset.letter}`;
    });
  }

  step(by) {
    const names = [...this.byLetter.keys()];
    location.hash = `absorption-${names[(names.indexOf(this.letter) + by + names.length) % names.length]}`;
  }

  show(letter) {
    if (!this.byLetter.size) return;
    this.letter = letter ?? this.letter ?? this.data.start;
    const held = document.activeElement && document.activeElement.closest("#letters");
    this.strip.replaceChildren(...this.data.letters.map((reading) => this.button(reading)));
    if (held) this.strip.querySelector("[aria-pressed=true]").focus();
    const { main, words, fraction, full } = this.byLetter.get(this.letter);
    const name = this.letter.toUpperCase();
    const count = (verdict) => words.filter((word) => word.verdict === verdict).length;
    document.getElementById("letter").textContent = `Words that begin with ${name}`;
    document.getElementById("summary").replaceChildren(
      ...(main.length > 1 ? ["Latents "] : ["Latent "]), ...this.links(main),
      ` ${main.length > 1 ? "stand" : "stands"} for ${name}. Of ${words.length} words, `,
      node("b", {}, `${count("absorbed")} absorbed`), " (own latents silent), ",
      node("b", {}, `${count("shared")} shared`), `, ${count("fires")} fires, ${count("missed")} missed. `,
      "Absorption fraction ", node("b", {}, fraction.toFixed(3)), ", full ", node("b", {}, full.toFixed(3)),
      " (means over the words; lower is better). On the median word the own latents write ",
      `${percent(words.map((word) => word.own_share))} of P, absorbers ${percent(words.map((word) => word.absorbed_share))}.`);
    const counted = new Map();
    for (const word of words) for (const [latent] of word.absorbers) counted.set(latent, (counted.get(latent) || 0) + 1);
    const most = [...counted].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, 6);
    document.getElementById("absorbers").replaceChildren(...(most.length ? ["Most often absorbing: "] : []),
      ...most.flatMap(([latent, n], i) => [i ? ", " : "", ...this.links([latent]), ` (${n} word${n > 1 ? "s" : ""})`]),
      ...(most.length ? [". One that absorbs a single word is the classic case; one that absorbs many is rather a second latent for the "
        + "letter, which the sparse probe did not choose."] : []));
    this.words(FIRST_WORDS);
  }

  links(latents) {
    return latents.flatMap((latent, i) => [i ? ", " : "", node("a", { href: `#latent-${latent}` }, `${latent}`)]);
  }

  button({ letter, fraction }) {
    const bar = node("i");
    bar.style.height = `${100 * fraction}%`;
    const label = `${letter.toUpperCase()}, absorption fraction ${fraction.toFixed(2)}`;
    return node("button", { type: "button", "data-letter": letter, "aria-pressed": letter === this.letter,
      "aria-label": label, title: label }, bar, letter.toUpperCase(), node("small", {}, fraction.toFixed(2)));
  }

  words(most) {
    const { words, contrast } = this.byLetter.get(this.letter);
    const group = (name) => node("tr", { class: "group" }, node("td", { colspan: 6 }, name));
    document.getElementById("words").replaceChildren(
      ...(contrast.length ? [group("For contrast: the letter's own latents fire, and nothing absorbs"),
        ...contrast.map((place) => this.word(words[place])), group("All words, the most absorbed first")] : []),
      ...words.slice(0, most).map((word) => this.word(word)));
    this.more.hidden = words.length <= most;
    this.more.textContent = `Show all ${words.length} words`;
  }

  word({ word, probe, own_share: byOwn, absorbed_share: byAbsorbers, main, absorbers, fraction, full, verdict }) {
    const own = Math.min(Math.max(byOwn, 0), SCALE);
    const theirs = Math.min(byAbsorbers, SCALE - own);
    const part = (kind, from, width) => {
      const made = node("i", { class: kind });
      made.style.left = `${(100 * from) / SCALE}%`;
      if (width) made.style.width = `${(100 * width) / SCALE}%`;
      return made;
    };
    const bar = node("div", { class: "bar", role: "img",
      "aria-label": `own latents ${byOwn.toFixed(2)}, absorbing latents ${byAbsorbers.toFixed(2)} of P` },
      ...(own ? [part("own", 0, own)] : []), ...(theirs ? [part("absorbing", own, theirs)] : []), part("whole", 1));
    bar.title = `own ${byOwn.toFixed(2)} + absorbing ${byAbsorbers.toFixed(2)}; P = ${probe.toFixed(2)}`;
    const carrier = ([latent, activation, cosine], cosines) => node("span", { class: "carrier" },
      node("a", { href: `#latent-${latent}` }, `${latent}`), ": ",
      activation > 0 ? activation.toFixed(2) + (cosines ? ` × ${cosine.toFixed(2)}` : "") : "silent");
    const firing = main.filter(([, activation]) => activation > 0);
    return node("tr", {},
      node("td", { class: "word" }, spaced(word)),
      node("td", { class: "verdict" }, VERDICTS[verdict], ...(full ? [node("b", {}, "full")] : [])),
      node("td", {}, bar),
      node("td", {}, ...(firing.length || main.length < 2 ? (firing.length ? firing : main).map((each) => carrier(each))
        : [`all ${main.length} silent`])),
      node("td", {}, ...absorbers.map((each) => carrier(each, true))),
      node("td", { class: "number" }, fraction.toFixed(2)));
  }
}
