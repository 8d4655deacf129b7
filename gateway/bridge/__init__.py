"""
Between the eras: what a message of one is in the other. Pure; no state beyond what is passed in,
but for the cores that a link drives (`conversation.py`, `listening.py`).

What a legacy client before a modern server (MCP 2026-07-28) does not get, since no message of
that revision carries it:

 1. Tasks of 2025-11-25: the server is said to have none. `tasks/*` are refused (-32601), `task` in
    a request is passed over, as that revision wants it of a server without tasks.
 2. Log messages before the client asked for a level: a modern server sends none unasked. Those
    that belong to no request: there are none any more.
 3. `notifications/elicitation/complete`: gone; the client's answer to the elicitation has the
    call tried again, and the server tells by asking once more, or not.
 4. The server's `ping`, and requests of the server outside a call.
 5. The client's progress on what it was asked, and its `notifications/roots/list_changed`: a
    modern server asks for the roots whenever it needs them.
 6. Extensions of the server (`capabilities.extensions`): no legacy revision has them. What the
    client declared of them goes up, but for tasks. A result of a type that only an extension has
    fails the call (-32603).
 7. For revisions before 2025-11-25: elicitation by URL, a choice of several in a form, sampling
    with tools or with several blocks in a message: a call that needs them fails (-32603), and says
    which revision has them.
 8. `structuredContent` that is no object, and an `outputSchema` that is not one of an object:
    left out (`results.py`). How long a result may be cached (`ttlMs`, `cacheScope`).
 9. Progress starts anew where a call takes another round: what was told before may be higher.
10. What a client reads between two streams of changes: it is told that all may have changed.
"""
