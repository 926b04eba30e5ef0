// The HTTP side: POST and DELETE /v1/scores, problem+json, Server-Timing. Knows nothing of the page.

const GIVE_UP_MS = 60_000; // a large photo on a slow phone network still gets through
const RETRYABLE = new Set([408, 429, 500, 502, 503, 504]); // 500: a proxy may turn a 503 of its own into one

/** What the service, or the way to it, had against a request. `retryAt` is a Date.now() time or 0. */
export class ApiError extends Error {
  constructor({ code, title = "", detail = "", status = 0, requestId = "", retryAt = 0 }) {
    super(title || code);
    Object.assign(this, { code, title, detail, status, requestId, retryAt });
    this.retryable = status === 0 || RETRYABLE.has(status) || code === "idempotency_in_flight";
  }
}

/**
 * Scores one photo. Sending it again with the same idempotency key is safe.
 * Returns {result, stages: [[name, ms], …], elapsed: ms as seen from here}; throws ApiError.
 */
export async function scorePhoto({ photo, profile, key, idempotencyKey }) {
  const headers = { "Idempotency-Key": idempotencyKey };
  let body = photo;
  if (profile) {
    body = new FormData();
    body.append("image", photo);
    body.append("profile", JSON.stringify(profile));
  } else {
    // The service judges by content; what is not an image must only not pass for JSON or a form.
    headers["Content-Type"] = photo.type.startsWith("image/") ? photo.type : "application/octet-stream";
  }
  const started = performance.now();
  const response = await send("/v1/scores", { method: "POST", body, headers }, key);
  const result = await response.json().catch(() => {
    throw new ApiError({ code: "network" }); // cut off, or somebody else's page answered in between
  });
  const stages = parseServerTiming(response.headers.get("Server-Timing"));
  return { result, stages, elapsed: performance.now() - started };
}

/** Removes a photo and its result from the service. One that is gone already counts as removed. */
export async function deleteScore(id, key) {
  try {
    await send(`/v1/scores/${encodeURIComponent(id)}`, { method: "DELETE" }, key);
  } catch (error) {
    if (error.code !== "not_found") throw error;
  }
}

/** "auth;dur=0.4, score;desc=\"x\";dur=7" → [["auth", 0.4], ["score", 7]], in the header's order. */
export function parseServerTiming(header) {
  const unquoted = (header ?? "").replace(/"[^"]*"/g, "");
  return unquoted.split(",").flatMap((metric) => {
    const [name, ...params] = metric.split(";").map((part) => part.trim());
    const dur = params.find((param) => /^dur\s*=/i.test(param));
    const ms = Number.parseFloat(dur?.split("=")[1]);
    return name && Number.isFinite(ms) ? [[name, ms]] : [];
  });
}

async function send(path, init, key) {
  const headers = { ...init.headers, Authorization: `Bearer ${key}`, Accept: "application/json" };
  let response;
  try {
    response = await fetch(path, {
      ...init, headers, cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(GIVE_UP_MS),
    });
  } catch {
    throw new ApiError({ code: "network" }); // fetch tells a page no more than that, by design
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({})); // a proxy's answer need not be ours
  throw new ApiError({
    code: problem.code ?? (response.status === 401 ? "unauthenticated" : "internal"),
    title: problem.title,
    detail: problem.detail,
    status: response.status,
    requestId: problem.request_id ?? requestIdOf(response),
    retryAt: retryAtOf(response),
  });
}

function requestIdOf(response) {
  return response.headers.get("X-Request-Id") ?? "";
}

function retryAtOf(response) {
  const value = response.headers.get("Retry-After");
  if (!value) return 0;
  const seconds = Number(value);
  return Number.isFinite(seconds) ? Date.now() + seconds * 1000 : Date.parse(value) || 0;
}
