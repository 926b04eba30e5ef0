// What the browser keeps: the key and the list for this tab, the profile for this browser.
// A browser may refuse storage (private mode, a full quota). Then memory alone has to do.

const HISTORY_MAX = 60;
const memory = new Map();

function read(area, name) {
  try {
    return JSON.parse(area().getItem(name)) ?? memory.get(name) ?? null;
  } catch {
    return memory.get(name) ?? null;
  }
}

/** True where the value outlives this page. */
function write(area, name, value) {
  memory.set(name, value);
  try {
    if (value === null) area().removeItem(name);
    else area().setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

const tab = () => sessionStorage; // even naming it throws where storage is blocked
const browser = () => localStorage;

export const loadKey = () => read(tab, "fooddx.key");
export const saveKey = (key) => write(tab, "fooddx.key", key);
export const loadProfile = () => read(browser, "fooddx.profile");
export const saveProfile = (profile) => write(browser, "fooddx.profile", profile);
export const loadHistory = () => read(tab, "fooddx.history") ?? [];

/** Entries newest first; the oldest give way until the rest fits. */
export function saveHistory(entries) {
  let kept = entries.slice(0, HISTORY_MAX);
  while (!write(tab, "fooddx.history", kept.length ? kept : null) && kept.length) {
    kept = kept.slice(0, kept.length >> 1);
  }
}

/** Takes the key out of "#key=…", so that it stays in neither the address bar nor the browser's history. */
export function takeKeyFromUrl() {
  const match = /^#key=(.+)$/.exec(location.hash);
  if (!match) return null;
  history.replaceState(null, "", location.pathname + location.search);
  try {
    return decodeURIComponent(match[1]).trim();
  } catch {
    return match[1]; // not percent-encoded after all
  }
}
