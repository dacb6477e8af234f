"""Takes a lock, appends a line to the file that the lock guards, releases it: client.py HOST PORT FILE LINE"""
import json, secrets, socket, sys, time

host, port, name, line = sys.argv[1:]
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.connect((host, int(port)))
session, cookie = {}, {}

def call(id, method, **params):
    """Sends the same request until its final answer comes: the server executes it once, however often it arrives."""
    delay = 0.1
    while True:
        request = {"jsonrpc": "2.0", "id": id, "method": method, "params": {**session, **cookie, **params}}
        again, delay = time.monotonic() + delay, min(2 * delay, 1.0)
        try:
            server.send(json.dumps(request).ljust(128).encode())  # long enough to be answered before the address is proven
            while (left := again - time.monotonic()) > 0:
                server.settimeout(left)
                reply = json.loads(server.recv(65535))
                if reply.get("id") != id:
                    continue  # the notification `pending`, or a late copy of an earlier reply
                if "result" in reply:
                    return reply["result"]
                data = reply["error"]["data"]
                if data["final"]:
                    sys.exit(f"{method}: {reply['error']['message']}")
                if "cookie" in data:
                    cookie["cookie"] = data["cookie"]
                    break  # repeat at once, with the proof
                time.sleep(data.get("retry_ms", 100) / 1000)
        except OSError:  # nothing came in time, or the server is down for the moment
            time.sleep(max(0, again - time.monotonic()))

session["session"] = call(0, "open_session", nonce=secrets.token_hex(16), name="client.py")["session"]
lock = call(1, "acquire_lock", key=name, wait_ms=60000)
if lock["granted"]:
    print(call(2, "append_file", file=name, data=line + "\n", token=lock["token"], got=[1]))
    call(3, "release_lock", token=lock["token"])
call(4, "close_session")
sys.exit(0 if lock["granted"] else 75)
