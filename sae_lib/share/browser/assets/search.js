"use strict";
// What the list is made of, without the page: which latents a query finds, and in which order.

const ROLE_ORDER = ["main", "split", "absorber"];

// How well a latent fits a query: 0 is best, Infinity does not fit. `entry` has latent, roles ([kind, letter, words]),
// peaks and promoted (tokens, trimmed and in lower case); `query` is trimmed and in lower case.
function fit(entry, query) {
  let best = Infinity;
  const number = query.replace(/^#/, "");
  if (/^\d+$/.test(number)) {
    if (entry.latent === Number(number)) return 0;
    if (String(entry.latent).startsWith(number)) best = 5;
  }
  if (/^[a-z]$/.test(query)) {
    for (const [kind, letter] of entry.roles)
      if (letter === query) best = Math.min(best, ROLE_ORDER.indexOf(kind));
  }
  if (entry.peaks.includes(query)) best = Math.min(best, 3);
  else if (query.length > 1 && entry.peaks.some((token) => token.includes(query))) best = Math.min(best, 4);
  else if (query.length > 1 && entry.promoted.some((token) => token.includes(query))) best = Math.min(best, 6);
  return best;
}

// Sort keys; null has no place in the order and stands last in both directions.
const KEYS = {
  latent: (entry) => entry.latent,
  letter: (entry) => {
    if (!entry.roles.length) return null;
    const [kind, letter, words] = entry.roles[0]; // of absorbers, those of many words first
    return letter.charCodeAt(0) * ROLE_ORDER.length + ROLE_ORDER.indexOf(kind) - words.length / 1e6;
  },
  density: (entry) => entry.density,
  maximum: (entry) => entry.maximum,
  stability: (entry) => entry.stability,
};

function compare(a, b, key, falling) {
  const [left, right] = [KEYS[key](a), KEYS[key](b)];
  if (left === right) return a.latent - b.latent;
  if (left === null) return 1;
  if (right === null) return -1;
  return falling ? right - left : left - right;
}

// The entries that fit, best fit first, those that fit as well by `key`; all of them for an empty query.
function find(entries, text, key, falling) {
  const query = text.trim().toLowerCase();
  const ranked = entries
    .map((entry) => [query ? fit(entry, query) : 0, entry])
    .filter(([rank]) => rank < Infinity);
  return ranked.sort((a, b) => a[0] - b[0] || compare(a[1], b[1], key, falling)).map(([, entry]) => entry);
}

if (typeof module !== "undefined") module.exports = { find, fit };
