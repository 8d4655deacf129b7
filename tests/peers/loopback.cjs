/*
 * Loaded before a server that would listen on every interface: it listens on loopback alone, and
 * prints where, as the fixture does.
 */
"use strict";

const { Server } = require("node:net");

const { listen } = Server.prototype;

Server.prototype.listen = function (port, ...rest) {
  this.once("listening", () => console.log(`ready http://127.0.0.1:${this.address().port}`));
  return listen.call(this, { port: Number(port), host: "127.0.0.1" }, ...rest);
};
