/*
 * A small server on npm `@modelcontextprotocol/server` 2.x, for the matrix of real clients:
 *
 *     NODE_PATH=… node server2_fixture.cjs (stdio | http) (serve | reject)
 *
 * `serve` and `reject` are what becomes of legacy clients. Over HTTP it prints
 * "ready http://127.0.0.1:PORT/mcp".
 */
"use strict";

const http = require("node:http");
const { Readable } = require("node:stream");
const { setTimeout: sleep } = require("node:timers/promises");
const {
  createMcpHandler,
  inputRequired,
  ProtocolError,
  Server,
} = require("@modelcontextprotocol/server");
const { serveStdio } = require("@modelcontextprotocol/server/stdio");

const PATIENCE_MS = 20_000;
const STATIC = "test://static-text";
const cancelled = new Map();

/* Whether and when a call was cancelled, by its name: a promise and what fulfils it. */
const cancellation = (name) => {
  if (!cancelled.has(name)) cancelled.set(name, Promise.withResolvers());
  return cancelled.get(name);
};

const progress = async (ctx, done, total) => {
  const progressToken = ctx.mcpReq._meta?.progressToken;
  if (progressToken === undefined) return;
  const params = { progressToken, progress: done, total };
  await ctx.mcpReq.notify({ method: "notifications/progress", params });
};

const FORM = {
  type: "object",
  properties: { username: { type: "string" }, email: { type: "string" } },
  required: ["username", "email"],
};

/* The tools; each is called with its arguments, the context and what tells of a change. */
const TOOLS = {
  test_simple_text: () => "This is a simple text response for testing.",
  test_echo: ({ message }) => message,
  test_large: ({ pattern, times }) => pattern.repeat(times),

  async test_tool_with_progress(_, ctx) {
    for (const done of [0, 50, 100]) {
      if (done) await sleep(50);
      await progress(ctx, done, 100);
    }
    return "Reported progress three times.";
  },

  test_sampling({ prompt }, ctx) {
    const answer = ctx.mcpReq.inputResponses?.sample;
    if (answer) return `LLM response: ${answer.content.text}`;
    const messages = [{ role: "user", content: { type: "text", text: prompt } }];
    const asked = inputRequired.createMessage({ messages, maxTokens: 100 });
    return inputRequired({ inputRequests: { sample: asked } });
  },

  test_elicitation({ message }, ctx) {
    const answer = ctx.mcpReq.inputResponses?.form;
    if (answer) {
      return `User response: action=${answer.action}, content=${JSON.stringify(answer.content)}`;
    }
    const asked = inputRequired.elicit({ mode: "form", message, requestedSchema: FORM });
    return inputRequired({ inputRequests: { form: asked } });
  },

  async test_touch({ uri }, _, changed) {
    await changed(uri);
    return "told";
  },

  async test_wait({ name }, ctx) {
    const { signal } = ctx.mcpReq;
    signal.addEventListener("abort", () => cancellation(name).resolve());
    await progress(ctx, 0, 1);
    await sleep(PATIENCE_MS, undefined, { signal });
    return "nobody cancelled";
  },

  async test_was_cancelled({ name }) {
    const late = sleep(PATIENCE_MS, "not cancelled", { ref: false });
    return await Promise.race([cancellation(name).promise.then(() => "cancelled"), late]);
  },
};

const taking = (...names) => ({
  type: "object",
  properties: Object.fromEntries(
    names.map((name) => [name, { type: name === "times" ? "integer" : "string" }]),
  ),
  required: names,
});
const TAKES = {
  test_echo: ["message"],
  test_large: ["pattern", "times"],
  test_sampling: ["prompt"],
  test_elicitation: ["message"],
  test_touch: ["uri"],
  test_wait: ["name"],
  test_was_cancelled: ["name"],
};

const makeServer = (changed) => {
  const capabilities = {
    tools: { listChanged: true },
    prompts: { listChanged: true },
    resources: { subscribe: true, listChanged: true },
  };
  const server = new Server({ name: "server2", version: "2" }, { capabilities });
  const tell = changed ?? ((uri) => server.sendResourceUpdated({ uri }));
  server.setRequestHandler("tools/list", () => ({
    tools: Object.keys(TOOLS).map((name) => ({
      name,
      description: `Fixture ${name}`,
      inputSchema: taking(...(TAKES[name] ?? [])),
    })),
  }));
  server.setRequestHandler("tools/call", async ({ params }, ctx) => {
    const tool = TOOLS[params.name];
    if (!tool) throw new ProtocolError(-32602, "Unknown tool");
    const said = await tool(params.arguments ?? {}, ctx, tell);
    return typeof said === "string" ? { content: [{ type: "text", text: said }] } : said;
  });
  server.setRequestHandler("resources/list", () => ({
    resources: [{ uri: STATIC, name: "static-text", mimeType: "text/plain" }],
  }));
  server.setRequestHandler("resources/read", ({ params: { uri } }) => {
    if (uri !== STATIC) throw new ProtocolError(-32602, "Resource not found", { uri });
    const text = "This is the content of the static text resource.";
    return { contents: [{ uri, mimeType: "text/plain", text }] };
  });
  server.setRequestHandler("prompts/list", () => ({ prompts: [{ name: "test_simple_prompt" }] }));
  return server;
};

/* Web-standard requests and responses on Node's own HTTP server. */
const listen = (handler) => {
  const server = http.createServer(async (request, response) => {
    const gone = new AbortController();
    response.on("close", () => gone.abort());
    const body = request.method === "POST" ? Readable.toWeb(request) : undefined;
    const url = `http://${request.headers.host}${request.url}`;
    const { method, headers } = request;
    const init = { method, headers, body, duplex: "half", signal: gone.signal };
    const answer = await handler.fetch(new Request(url, init));
    response.writeHead(answer.status, Object.fromEntries(answer.headers));
    if (answer.body === null) response.end();
    else Readable.fromWeb(answer.body).on("error", () => response.destroy()).pipe(response);
  });
  server.listen(0, "127.0.0.1", () => {
    console.log(`ready http://127.0.0.1:${server.address().port}/mcp`);
  });
};

const [way, legacy] = process.argv.slice(2);
if (way === "stdio") {
  serveStdio(() => makeServer(), { legacy });
} else {
  const handler = createMcpHandler(
    () => makeServer((uri) => handler.notify.resourceUpdated(uri)),
    { legacy: legacy === "reject" ? "reject" : "stateless", maxRequestBodySize: 32 * 1024 * 1024 },
  );
  listen(handler);
}
