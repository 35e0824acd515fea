"""A whole job with every debug line on: neither a secret nor the job's content is in anybody's log."""

from __future__ import annotations

import base64
import json

from p2p_node import keystore
from p2p_node.datadir import DataDir
from p2p_node.swarm import Swarm
from tests.swarm.jobs import DOCUMENT, Run


def test_no_log_holds_a_secret_or_what_the_job_was_about(swarm: Swarm, honest_run: Run) -> None:
    prompt = "And it came to pass"
    assert prompt in DOCUMENT
    text = honest_run.summary["text"]
    words = {text[at : at + 12] for at in range(0, len(text) - 12)}
    for peer in swarm.peers[:5]:
        place = DataDir.open(peer.datadir)
        log = peer.log.read_text()
        seed = keystore.load(place.keystore).seed
        secrets = [
            json.loads(place.api.read_text())["token"],
            *(seed.hex(), base64.b64encode(seed).decode(), repr(seed)[2:-1]),
        ]
        for secret in [*secrets, prompt, "came to pass", *words]:
            assert secret not in log
        assert "[debug" in log
