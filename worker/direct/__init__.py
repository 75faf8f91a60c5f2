"""The direct channel: frames reach the proxy without the queue, which takes over at any time.

A job whose input has a `channel` is *relayed*: its frames wait in an outbox, leave by the channel
while a proxy listens there, and are posted to the queue when nobody does, or when nobody has
acknowledged them within a second. Two doors lead to a channel: the worker's own, which the proxy
dials, and the proxy's, which the worker dials. docs/worker.md has the wire.

    road.py         all of it, as the handler and the shutdown see it
    channels.py     which connections there are, which jobs each may see, and both doors
    invitation.py   what a job's input says of its channel
    relay.py        one job: vLLM's frames in, the channel and the queue out
    outbox.py       which of its frames may be sent, which are due for the queue, which are done
    connection.py   one WebSocket to one copy of the proxy
    peer.py         one copy of the proxy: its jobs, and its channel
    door.py         the worker's door; identity.py its certificate, address.py where it is seen
    dialling.py     the way to the proxy's door
    freeze.py       noticing that the container stood still

Nothing here is imported before a job, or the container, asks for it.
"""
