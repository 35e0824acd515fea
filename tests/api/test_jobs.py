"""Jobs over the API: accepted, refused, followed, cancelled, explained."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import httpx
import pytest

from p2p_node.client import NodeClient
from p2p_node.core.keyring import RealCrypto
from p2p_node.receipts import check_file
from p2p_node.yamltree import DOCUMENT_BYTES_MAX
from tests.api.rig import NETWORK, PEERS, PRICES, PRODUCT, Rig, job_document

LIFE = ["offered", "bid", "awarded", "accepted", "output", "committed", "verifier-drawn", "verdict", "paid"]


def test_status_tells_what_the_node_is(client: NodeClient) -> None:
    status = client.status()
    assert status["peer_id"].startswith("12D3KooW")
    assert len(status["key"]) == 64
    assert status["network"] == NETWORK
    assert status["connected"] == status["known_peers"] == PEERS - 1
    assert status["addresses"][0].endswith(status["peer_id"])
    assert status["slots_free"] <= status["slots_total"] == 4
    assert status["earned_micros"] == 0
    assert status["idle_reason"] == "it offers no model"
    assert status["measured"] == {"cores": 2}


def test_peers_are_merged_from_links_and_adverts(client: NodeClient) -> None:
    rows = client.peers()
    assert len(rows) == PEERS - 1
    assert client.status()["peer_id"] not in {row["peer_id"] for row in rows}
    for row in rows:
        assert row["connected"]
        assert row["direction"] in ("inbound", "outbound")
        assert row["points"] == 0
        assert row["expires_in_ms"] > 0
        assert (row["cores"], row["ram_bytes"], row["slots_total"]) == (2, 1 << 30, 4)
        assert not row["convicted"]
    offerings = [offering for row in rows for offering in row["offerings"]]
    assert {offering["model"] for offering in offerings} == {"kjv-2m", "integer-matmul"}
    assert sorted({offering["price_micros"] for offering in offerings}) == sorted(PRICES[1:])


def test_a_job_from_its_file_to_its_receipt(client: NodeClient, http: httpx.Client) -> None:
    response = http.post("/v1/jobs", content=job_document(name="whole"))
    assert response.status_code == 201
    job = response.json()
    assert (job["name"], job["state"]) == ("whole", "bidding")
    refused = http.get(f"/v1/jobs/{job['id']}/receipt")
    assert refused.status_code == 404
    assert refused.json()["error"]["rule"] == "a job has a receipt once it is over"

    events = list(client.events(job["id"]))
    names = [event["event"] for event in events]
    assert [name for name in dict.fromkeys(names) if name in LIFE] == LIFE
    assert names[-1] == "finished"
    assert names.count("bid") == PEERS - 1
    # Whoever comes later hears all of it.
    assert list(client.events(job["id"])) == events
    assert list(client.events(job["id"][:10], follow=False)) == events

    done = client.job(job["id"])
    assert (done["state"], done["units"], done["receipt_available"]) == ("verified", 40, True)
    assert done["text"].startswith(
        "".join(event["text"] for event in events if event["event"] == "output")[:10]
    )
    (output,) = done.pop("outputs")
    assert (output["text"], output["finish"], output["tokens"]) == (done["text"], "length", 40)
    assert done in client.jobs()
    report = check_file(client.receipt(job["id"]), RealCrypto())
    assert report.job_id.hex() == job["id"]
    paid = {event["peer"]: event["settled_micros"] for event in events if event["event"] == "paid"}
    assert sum(report.earnings.values()) == sum(paid.values()) > 0


def test_an_output_that_is_not_text_is_a_file(client: NodeClient, http: httpx.Client) -> None:
    identifier = client.submit(PRODUCT)["id"]
    assert http.get(f"/v1/jobs/{identifier}/result").status_code == 404
    list(client.events(identifier))
    job = client.job(identifier)
    assert (job["state"], job["unit"], job["is_text"], job["text"]) == ("verified", "entry", False, "")
    answer = http.get(f"/v1/jobs/{identifier}/result")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-result-description"] == "NumPy file of 2 x 2 32-bit integers"
    assert answer.content.startswith(b"\x93NUMPY")


def test_text_is_no_file(client: NodeClient, http: httpx.Client) -> None:
    identifier = client.submit(job_document())["id"]
    list(client.events(identifier))
    assert client.job(identifier)["is_text"]
    refused = http.get(f"/v1/jobs/{identifier}/result")
    assert refused.status_code == 404
    assert refused.json()["error"]["rule"] == "a job has a result file once it is verified, unless it is text"


def test_declines_are_added_up_with_what_would_help(client: NodeClient) -> None:
    job = client.submit(job_document(max_price=1))
    assert list(client.events(job["id"]))[-1]["state"] == "no_bids"
    explained = client.explain(job["id"])
    assert explained["state"] == "no_bids"
    (group,) = explained["declines"]
    assert (group["reason"], group["count"]) == ("price", PEERS - 1)
    assert group["change"] == f"raise auction.max_price from 1 to {min(PRICES[1:])}"


def test_bids_of_a_second_round_are_seen(rig: Rig, client: NodeClient) -> None:
    def pause(is_paused: bool) -> None:
        for node in rig.others:
            node.core.provider.is_paused = is_paused

    rig.call(pause, True)
    try:
        job = client.submit(job_document(rebids=2))
        for event in client.events(job["id"]):
            if event["event"] == "no-bids-yet":
                rig.call(pause, False)
    finally:
        rig.call(pause, False)
    names = [event["event"] for event in client.events(job["id"], follow=False)]
    assert names.count("bid") == PEERS - 1
    assert client.job(job["id"])["state"] == "verified"


def test_cancelling(client: NodeClient) -> None:
    job = client.submit(job_document(window="9s", max_price=1))
    assert client.cancel(job["id"])["state"] == "cancelled"
    assert client.job(job["id"])["reason"] == "cancelled by the client"
    # Once over, it stays so.
    assert client.cancel(job["id"])["state"] == "cancelled"
    assert [event["event"] for event in client.events(job["id"])][-1] == "finished"


def test_an_id_must_name_one_job(client: NodeClient, http: httpx.Client) -> None:
    jobs = [client.submit(job_document(window="9s", max_price=1)) for _ in range(17)]
    for job in jobs:
        client.cancel(job["id"])
    # Of 17 ids, two begin with the same digit.
    digits = [job["id"][0] for job in jobs]
    shared = next(digit for digit in digits if digits.count(digit) > 1)
    response = http.get(f"/v1/jobs/{shared}")
    assert response.status_code == 404
    assert "jobs have an id that begins with" in response.json()["error"]["message"]


def test_a_reader_that_leaves_harms_nobody(client: NodeClient, http: httpx.Client) -> None:
    job = client.submit(job_document())
    with http.stream("GET", f"/v1/jobs/{job['id']}/events") as response:
        next(response.iter_lines())
    assert list(client.events(job["id"]))[-1]["state"] == "verified"


def test_a_fault_in_a_job_file_is_located(http: httpx.Client) -> None:
    document = job_document(max_tokens=0)
    response = http.post("/v1/jobs", content=document)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["field"] == "task.max_tokens"
    assert error["line"] == 8
    assert error["value"] == "'0'"
    assert "from 1 to" in error["rule"]
    assert "task.max_tokens" in error["message"]


def test_a_model_that_is_not_here_is_named(http: httpx.Client) -> None:
    response = http.post("/v1/jobs", content=job_document().replace(b"kjv-2m", b"gpt-9"))
    assert response.status_code == 400
    assert "'gpt-9'" in response.json()["error"]["message"]


JUNK = {
    "nothing": b"",
    "not text": b"\xff\xfe\0",
    "not a mapping": b"- 1\n- 2\n",
    "unfinished": b"{",
    "binary": bytes(range(256)),
    "nested": b"[" * 20_000,
    "an anchor that holds itself": b"a: &a [*a]\n",
    "many aliases": b"a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: [*b,*b,*b,*b]\n",
    "a tag": b"!!python/object/apply:os.system [true]\n",
    "two documents": b"a: 1\n---\nb: 2\n",
    "a huge number": b"a: " + b"9" * 10_000,
    "json that isn't a job": json.dumps({"apiVersion": "p2p/v1", "kind": "Job"}).encode(),
    "an unknown field": job_document() + b"surprise: 1\n",
}


@pytest.mark.parametrize("document", JUNK.values(), ids=JUNK.keys())
def test_junk_is_refused_with_a_reason(http: httpx.Client, document: bytes) -> None:
    response = http.post("/v1/jobs", content=document)
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"rule", "value", "message", "line", "field"}
    assert error["rule"]
    assert error["line"] >= 1


def test_bodies_are_bounded_whether_announced_or_not(http: httpx.Client) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(DOCUMENT_BYTES_MAX // 1_024 + 1):
            yield b"#" * 1_024

    before = len(http.get("/v1/jobs").json())
    for content in (b"#" * (DOCUMENT_BYTES_MAX + 1), b"#" * 4_000_000, parts()):
        response = http.post("/v1/jobs", content=content)
        assert response.status_code == 413
        assert str(DOCUMENT_BYTES_MAX) in response.json()["error"]["rule"]
    # Who goes on for longer may be cut off before the answer.
    with contextlib.suppress(httpx.TransportError):
        assert http.post("/v1/jobs", content=b"#" * 20_000_000).status_code == 413
    assert len(http.get("/v1/jobs").json()) == before


def test_follow_takes_two_values(client: NodeClient, http: httpx.Client) -> None:
    job = client.submit(job_document(window="9s", max_price=1))
    client.cancel(job["id"])
    response = http.get(f"/v1/jobs/{job['id']}/events?follow=maybe")
    assert response.status_code == 400
    assert response.json()["error"]["value"] == "maybe"


def test_shutting_down_asks_the_node_to_stop(rig: Rig, client: NodeClient) -> None:
    assert not rig.stopped.is_set()
    client.shut_down()
    assert rig.stopped.wait(5)
    rig.stopped.clear()
