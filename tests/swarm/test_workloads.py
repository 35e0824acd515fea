"""A picture by strangers: a job that isn't text, through real processes, from its file to a PNG."""

from __future__ import annotations

from p2p_node.core.keyring import RealCrypto
from p2p_node.receipts import check_file
from p2p_node.swarm import Swarm
from workloads.png import png
from workloads.render.scene import Camera, Material, RenderInput, Sphere
from workloads.render.trace import packed, radiance

DOCUMENT = b"""
apiVersion: p2p/v1
kind: Job
name: ball
task:
  workload: render.trace
  width: 32
  height: 16
  samples: 4
  seed: 3
  background: [0.5, 0.5, 1]
  camera: {position: [0, 0, 3], target: [0, 0, 0]}
  materials: [{name: clay, albedo: [0.8, 0.4, 0.3]}]
  spheres: [{centre: [0, 0, 0], radius: 1, material: clay}]
auction:
  window: 1s
"""
SCENE = RenderInput(
    width=32,
    height=16,
    samples=4,
    depth=4,
    seed=3,
    cameras=(Camera((0, 0, 3_000), (0, 0, 0), 1_000),),
    background=(500, 500, 1_000),
    materials=(Material((800, 400, 300)),),
    spheres=(Sphere((0, 0, 0), 1_000, 0),),
)


def test_a_picture_is_rendered_verified_and_handed_over(swarm: Swarm) -> None:
    with swarm.requester.connect() as client:
        job_id = client.submit(DOCUMENT)["id"]
        events = list(client.events(job_id))
        job = client.job(job_id)
        content, description = client.result(job_id)
        report = check_file(client.receipt(job_id), RealCrypto())
    assert (job["state"], job["units"], job["unit"], job["text"]) == ("verified", 512, "pixel", "")
    assert any(event["event"] == "verdict" and event["agrees"] for event in events)
    assert report.state == "verified"
    assert description == "PNG image of 32 x 16 pixels, 4 samples each"
    tiles = [packed(radiance(SCENE, tile)) for tile in range(2)]
    rows = [tiles[tile][16 * y : 16 * y + 16] for y in range(16) for tile in range(2)]
    assert content == png(32, 16, b"".join(word.to_bytes(4, "little")[:3] for row in rows for word in row))
