/* A client of the matrix on npm `@modelcontextprotocol/client` 2.x, in any of its modes; see steps.cjs. */
"use strict";

const {
  Client,
  SSEClientTransport,
  StreamableHTTPClientTransport,
} = require("@modelcontextprotocol/client");
const { main } = require("./steps.cjs");

const MODES = { legacy: "legacy", modern: { pin: "2026-07-28" }, auto: "auto" };

const open = async (kind, url, heard, mode) => {
  const client = new Client(
    { name: "client2", version: "2" },
    {
      capabilities: { sampling: {}, elicitation: { form: {}, url: {} } },
      versionNegotiation: { mode: MODES[mode] },
    },
  );
  client.setRequestHandler("sampling/createMessage", (request) => heard.sampling(request.params));
  client.setRequestHandler("elicitation/create", (request) => heard.elicitation(request.params));
  client.setNotificationHandler("notifications/resources/updated", (notification) =>
    heard.update(notification.params.uri),
  );
  client.setNotificationHandler("notifications/tools/list_changed", () => heard.noteChange());
  const Transport = kind === "http" ? StreamableHTTPClientTransport : SSEClientTransport;
  const transport = new Transport(new URL(url), { fetch: heard.fetch });
  await client.connect(transport);
  return {
    client,
    transport,
    revision: () => client.getNegotiatedProtocolVersion(),
    call: (params, options) => client.callTool(params, options),
    ...(client.getProtocolEra() === "modern"
      ? { listen: (filter) => client.listen(filter) }
      : {}),
  };
};

main(open);
