"""One picture by several strangers: a job in parts through real processes, from its file to one PNG."""

from __future__ import annotations

from p2p_node.core.keyring import RealCrypto
from p2p_node.partition.receipts import check_any_file
from p2p_node.swarm import Swarm
from tests.swarm.test_workloads import DOCUMENT, SCENE
from verification.receipt_parts import WholeReport
from workloads.render.trace import packed, radiance

TILES = 2


def test_tiles_by_several_peers_are_one_picture(swarm: Swarm) -> None:
    document = DOCUMENT.replace(b"auction:\n  window: 1s\n", b"parts: %d\n" % TILES)
    with swarm.requester.connect() as client:
        job_id = client.submit(document)["id"]
        events = list(client.events(job_id))
        job = client.job(job_id)
        assert job["state"] == "verified", job["reason"]
        content, description = client.result(job_id)
        report = check_any_file(client.receipt(job_id), RealCrypto())
        alone = client.submit(DOCUMENT)["id"]
        list(client.events(alone))
        assert client.job(alone)["state"] == "verified", client.job(alone)["reason"]
        # Whoever did which part, it is the picture that one peer makes.
        assert client.result(alone) == (content, description)
    assert (job["state"], job["parts_verified"]) == ("verified", TILES)
    assert events[-1]["event"] == "finished"
    assert isinstance(report, WholeReport)
    assert (report.state, report.whole_id.hex(), len(report.parts)) == ("verified", job_id, TILES)
    assert report.units == tuple(word for tile in range(TILES) for word in packed(radiance(SCENE, tile)))
