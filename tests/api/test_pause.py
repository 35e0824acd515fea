"""The owner takes the machine back, over the API."""

from __future__ import annotations

import pytest

from p2p_node.client import ApiError, NodeClient


def test_pausing_shows_in_the_status_and_ends_with_resume(client: NodeClient) -> None:
    try:
        assert client.pause_work("cpu") == ["cpu"]
        assert client.pause_work() == ["all", "cpu"]
        status = client.status()
        assert (status["paused"], status["slots_free"]) == (["all", "cpu"], status["slots_total"])
        assert status["idle_reason"] == "its owner paused all, cpu: p2p-node resume"
        with pytest.raises(ApiError, match="leave the device out"):
            client.resume_work("cpu")
    finally:
        assert client.resume_work() == []
    assert client.status()["paused"] == []


def test_a_device_that_is_not_there_is_refused(client: NodeClient) -> None:
    with pytest.raises(ApiError, match="must be one of all, cpu") as refused:
        client.pause_work("cuda:7")
    assert (refused.value.status, refused.value.error["value"]) == (400, "cuda:7")
