"""A worker that takes no jobs and sends back what comes to its port 8899."""

import os
import socketserver


class Echo(socketserver.BaseRequestHandler):
    """One connection."""

    def handle(self) -> None:
        """Send back what comes."""
        while data := self.request.recv(2**16):
            self.request.sendall(data)


if __name__ == "__main__":
    address = (os.environ["WORKER_DIRECT_LISTEN_HOST"], 8899)
    with socketserver.ThreadingTCPServer(address, Echo) as server:
        server.serve_forever()
