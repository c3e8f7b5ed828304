"""Requests to a service, as plain as they can be."""

import json
import time
import urllib.error
import urllib.request


def ask(url, body=None, key=None):
    """Status and JSON of a request; a POST where there is a body."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data, headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def answer(reply):
    """Ids and scores, best first."""
    return [(int(match["id"]), match["score"]) for match in reply["matches"]]


def wait_for(found, seconds):
    """What `found` returns, once it is something."""
    deadline = time.monotonic() + seconds
    while not (one := found()):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return one
