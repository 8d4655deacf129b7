/*
 * What a JavaScript client of the matrix does, whatever its SDK; steps.py says the same in Python.
 *
 * A client program brings `open`, which opens a connection with its SDK, and calls `main`:
 *
 *     NODE_PATH=… node CLIENT.cjs (http | sse) URL PROFILE (legacy | modern | auto)
 *
 * It does each step with the tools that profiles.json names, and prints one JSON object: step →
 * what came of it, which is what this client saw, be it an error. A modern client has no session to
 * end.
 */
"use strict";

const { createHash, randomUUID } = require("node:crypto");
const { readFileSync } = require("node:fs");
const { join } = require("node:path");
const { setTimeout: sleep } = require("node:timers/promises");

const STEP_MS = 30_000;
// How long it is waited for what may never come.
const SILENCE_MS = 5_000;
const SAMPLED = "a model's words \u{1f600}";
const ELICITED = { username: "me", email: "me@example.org" };
// By a word of the question: what is answered in place of ELICITED.
const FIELDS = {
  fields: { ...ELICITED, name: "me" },
  "your name": { name: "me" },
  color: { color: "grün" },
  context: { context: "tests" },
};
const TOGETHER = 10;

/* What the server said beside its answers, and how the last message reached it. */
class Heard {
  asked = [];
  updated = [];
  target = "";
  session = null;
  toolsChanged = new Promise((resolve) => (this.noteChange = resolve));
  firstUpdate = new Promise((resolve) => (this.noteUpdate = resolve));

  sampling({ _meta, ...params }) {
    this.asked.push(params);
    const content = { type: "text", text: SAMPLED };
    return { role: "assistant", content, model: "m" };
  }

  elicitation({ _meta, ...params }) {
    this.asked.push({ ...params, requestedSchema: digest(params.requestedSchema) });
    // Each asks for other fields; what it asks for is filled.
    const [, fields] =
      Object.entries(FIELDS).find(([word]) => params.message.includes(word)) ?? [];
    return { action: "accept", content: fields ?? ELICITED };
  }

  update(uri) {
    this.updated.push(uri);
    this.noteUpdate();
  }

  // The fetch of the transport: where its messages go, and in which session.
  fetch = (url, init) => {
    if (init?.method === "POST") {
      this.target = String(url);
      this.session = new Headers(init.headers).get("mcp-session-id");
    }
    return fetch(url, init);
  };
}

/* An object with its members in order, for servers write them in any. */
const sorted = (_, value) =>
  value && typeof value === "object" && !Array.isArray(value)
    ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
    : value;

const digest = (value) =>
  createHash("sha256")
    .update(typeof value === "string" ? value : JSON.stringify(value, sorted))
    .digest("hex")
    .slice(0, 16);

/* An error, as its user sees it. */
const described = (error) =>
  error instanceof Error
    ? { error: error.constructor.name, code: error.code ?? null, message: error.message }
    : { error: String(error) };

const tried = async (promise) => {
  const controller = new AbortController();
  const late = sleep(STEP_MS, undefined, { signal: controller.signal }).then(() => {
    throw new Error("the step took too long");
  });
  late.catch(() => {});
  try {
    return await Promise.race([promise, late]);
  } catch (error) {
    return described(error);
  } finally {
    controller.abort();
  }
};

/* The text of a tool's answer. */
const words = (answer) => {
  const text = answer.content.map((item) => item.text).join("\n");
  return answer.isError ? `failed: ${text}` : text;
};

const said = async (peer, { tool, arguments: given, fill, size }, options) => {
  const filled = size ? { [fill]: "x".repeat(size) } : {};
  return words(await peer.call({ name: tool, arguments: { ...given, ...filled } }, options));
};

/* The steps in a connection. */

const STEPS = {
  async initialize(peer) {
    return { revision: peer.revision(), capabilities: peer.client.getServerCapabilities() };
  },

  async lists(peer) {
    const seen = {};
    for (const [kind, key, list] of [
      ["tools", "name", () => peer.client.listTools()],
      ["resources", "uri", () => peer.client.listResources()],
      ["prompts", "name", () => peer.client.listPrompts()],
    ]) {
      const found = (await list())[kind];
      seen[kind] = found.map((item) => item[key]).sort();
      seen[`${kind} digest`] = digest(found);
    }
    return seen;
  },

  async read(peer, profile) {
    const found = await peer.client.readResource({ uri: profile.read });
    return { begins: found.contents[0].text.split("\n")[0], digest: digest(found) };
  },

  async call(peer, profile) {
    return await said(peer, profile.text);
  },

  /* A tool with an argument that stands in a header field, too. */
  async headers(peer, profile) {
    return profile.headers ? await said(peer, profile.headers) : null;
  },

  /* Many calls at once; how many got their own answer. */
  async together(peer, profile) {
    const { tool, fill } = profile.echo;
    const own = await Promise.all(
      Array.from({ length: TOGETHER }, async (_, n) => {
        const message = `number ${n} of many`;
        const answer = await peer.call({ name: tool, arguments: { [fill]: message } });
        return words(answer).includes(message);
      }),
    );
    return own.filter(Boolean).length;
  },

  async progress(peer, profile) {
    const seen = [];
    const onprogress = ({ progress, total }) => seen.push([progress, total]);
    return { said: await said(peer, profile.progress, { onprogress }), seen };
  },

  async sampling(peer, profile, heard) {
    return await asked(peer, profile.sampling, heard);
  },

  async elicitation(peer, profile, heard) {
    return await asked(peer, profile.elicitation, heard);
  },

  /* A tool that asks twice, the second time with what it heard. */
  async rounds(peer, profile, heard) {
    return profile.rounds ? await asked(peer, profile.rounds, heard) : null;
  },

  /* A prompt that asks. */
  async prompt(peer, profile, heard) {
    if (!profile.prompt) return null;
    heard.asked.length = 0;
    const found = await peer.client.getPrompt({ name: profile.prompt });
    return { said: found.messages[0].content.text, asked: [...heard.asked] };
  },

  async update(peer, { update: how }, heard) {
    const unwatch = await watched(peer, how.uri);
    const answers = [await said(peer, how.on)];
    await heard.firstUpdate;
    if (!how.says) await said(peer, how.off);
    await unwatch();
    if (how.says) answers.push(await said(peer, how.off));
    return { updated: [...new Set(heard.updated)], said: how.says ? answers : [] };
  },

  /* Have the list of tools change, and hear it. */
  async changed(peer, profile, heard) {
    if (!profile.changed) return null;
    const unwatch = await watched(peer, profile.update.uri);
    const answer = await said(peer, profile.changed);
    await heard.toolsChanged;
    await unwatch();
    return answer;
  },

  async cancel(peer, profile) {
    const how = profile.cancel;
    const ended = await tried(cancelled(peer, how.call));
    const seen = how.seen ? await said(peer, how.seen) : null;
    return { ended, seen, after: await said(peer, profile.text) };
  },

  /*
   * These SDKs come back, after a while, for a stream whose answer was an error, and
   * server-everything repeats what it said since then, on whatever stream. So errors come last.
   */
  async errors(peer) {
    const unknown = { tool: "no such tool", arguments: {} };
    return {
      tool: await tried(said(peer, unknown)),
      resource: await tried(peer.client.readResource({ uri: "test://no-such-resource" })),
    };
  },
};

/* Have the client hear that a resource or the list of tools changes; returns what ends that. */
const watched = async (peer, uri) => {
  if (peer.listen) {
    const open = await peer.listen({ resourceSubscriptions: [uri], toolsListChanged: true });
    return () => open.close();
  }
  await peer.client.subscribeResource({ uri });
  return () => peer.client.unsubscribeResource({ uri });
};

const asked = async (peer, call, heard) => {
  heard.asked.length = 0;
  const answer = await said(peer, call);
  return { said: answer, asked: [...heard.asked] };
};

/* Call, cancel as soon as there is progress; how the call ended. */
const cancelled = async (peer, call) => {
  const controller = new AbortController();
  const onprogress = () => controller.abort(new Error("enough"));
  try {
    await said(peer, call, { onprogress, signal: controller.signal });
  } catch (error) {
    if (!controller.signal.aborted || !String(error.message).includes("enough")) throw error;
    return "cancelled";
  }
  return "an answer";
};

const large = async (peer, profile) => {
  const seen = [];
  for (const call of profile.large) {
    const answer = await tried(said(peer, call));
    // Characters as Python counts them: code points.
    seen.push(typeof answer === "string" ? [[...answer].length, digest(answer)] : answer);
  }
  return seen;
};

/* The steps that end connections. */

/* A bare request in a session: the status, and the code of the error. */
const raw = async (method, url, session) => {
  const headers = {
    accept: "application/json, text/event-stream",
    "content-type": "application/json",
    ...(session ? { "mcp-session-id": session } : {}),
  };
  const body = method === "POST" ? '{"jsonrpc":"2.0","id":"raw","method":"ping"}' : undefined;
  try {
    const signal = AbortSignal.timeout(SILENCE_MS);
    const answer = await fetch(url, { method, headers, body, signal });
    if (answer.ok) {
      await answer.body?.cancel();
      return [answer.status, null];
    }
    const text = await answer.text();
    try {
      return [answer.status, JSON.parse(text).error.code];
    } catch {
      return [answer.status, null];
    }
  } catch (error) {
    if (error.name !== "TimeoutError") throw error;
    return ["no answer", null];
  }
};

/* What a session that was ended answers, once it is. */
const refused = async (heard) => {
  for (const until = Date.now() + SILENCE_MS; ; await sleep(50)) {
    const seen = await raw("POST", heard.target, heard.session);
    if (![200, 202].includes(seen[0]) || Date.now() > until) return seen;
  }
};

/* What came of a connection's use; an error that ends the connection counts, too. */
const within = async (open, transport, url, heard, mode, use) => {
  try {
    const peer = await open(transport, url, heard, mode);
    const result = await use(peer);
    // A session that is lost cannot be ended; whether one was is seen by what it answers then.
    if (transport === "http" && mode === "legacy") await peer.transport.terminateSession().catch(() => {});
    await peer.client.close();
    return result;
  } catch (error) {
    return described(error);
  }
};

/* All the steps; what came of each. */
const run = async (open, transport, url, profile, mode) => {
  const seen = {};
  const heard = new Heard();
  const broken = await within(open, transport, url, heard, mode, async (peer) => {
    for (const [name, step] of Object.entries(STEPS)) {
      seen[name] = await tried(step(peer, profile, heard));
    }
  });
  if (broken) seen.broken = broken;
  if (mode === "legacy") seen.delete = await refused(heard);
  if (mode === "legacy" && transport === "http") {
    const lost = new Heard();
    seen.loss = await within(open, transport, url, lost, mode, async (peer) => {
      await said(peer, profile.text);
      const [status] = await raw("DELETE", lost.target, lost.session);
      const then = await tried(said(peer, profile.text));
      return { deleted: [200, 204].includes(status), then };
    });
  }
  const late = await within(open, transport, url, new Heard(), mode, async (peer) => {
    seen.fresh = await tried(STEPS.call(peer, profile));
    seen.large = await large(peer, profile);
  });
  if (late) seen.large = late;
  return seen;
};

const main = async (open) => {
  const [transport, url, name, mode] = process.argv.slice(2);
  const unique = randomUUID();
  const profiles = readFileSync(join(__dirname, "profiles.json"), "utf8");
  const profile = JSON.parse(profiles.replaceAll("{unique}", unique))[name];
  const seen = await run(open, transport, url, profile, mode);
  const text = JSON.stringify(seen).replaceAll(unique, "{unique}");
  // Timers of a transport would hold the process.
  process.stdout.write(text + "\n", () => process.exit(0));
};

module.exports = { main };
