/* A client of the matrix on npm `@modelcontextprotocol/sdk` 1.x; see steps.cjs. */
"use strict";

const { Client } = require("@modelcontextprotocol/sdk/client/index.js");
const { SSEClientTransport } = require("@modelcontextprotocol/sdk/client/sse.js");
const {
  StreamableHTTPClientTransport,
} = require("@modelcontextprotocol/sdk/client/streamableHttp.js");
const types = require("@modelcontextprotocol/sdk/types.js");
const { main } = require("./steps.cjs");

const open = async (kind, url, heard) => {
  const client = new Client(
    { name: "sdk1", version: "1" },
    { capabilities: { sampling: {}, elicitation: { form: {}, url: {} } } },
  );
  client.setRequestHandler(types.CreateMessageRequestSchema, (request) =>
    heard.sampling(request.params),
  );
  client.setRequestHandler(types.ElicitRequestSchema, (request) =>
    heard.elicitation(request.params),
  );
  client.setNotificationHandler(types.ResourceUpdatedNotificationSchema, (notification) =>
    heard.update(notification.params.uri),
  );
  client.setNotificationHandler(types.ToolListChangedNotificationSchema, () => heard.noteChange());
  const Transport = kind === "http" ? StreamableHTTPClientTransport : SSEClientTransport;
  const transport = new Transport(new URL(url), { fetch: heard.fetch });
  let revision;
  // The SDK tells nobody but its transport what was negotiated.
  const tell = transport.setProtocolVersion.bind(transport);
  transport.setProtocolVersion = (version) => tell((revision = version));
  await client.connect(transport);
  return {
    client,
    transport,
    revision: () => revision,
    call: (params, options) => client.callTool(params, undefined, options),
  };
};

main(open);
