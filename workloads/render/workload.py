"""Running ``render.trace``: a chunk is a tile, and its digest covers the light before it became 8-bit words.

The cheap check is to render a few tiles again: they don't depend on each other.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from workloads.blobs import NO_BLOBS, Blobs
from workloads.chunkwise import Chunk
from workloads.errors import InputRefused
from workloads.profiled import Profiled
from workloads.render.bvh import Tree, build_tree
from workloads.render.kind import FABRICATED_TILES, RENDER, model_digest
from workloads.render.mesh import decode_mesh
from workloads.render.scene import RenderInput, decode_input
from workloads.render.trace import packed, radiance, shared_exponent

__all__ = ["Renderer"]


class Renderer(Profiled[RenderInput]):
    """The path tracer.

    Args:
        profile: names the digests; the arithmetic is the same in both exact profiles.
        variant: how to cheat while generating, or None.
        expected_digest: the digest that a job names, if any.
        blobs: where meshes lie.

    Raises:
        InputRefused: the profile or the variant is unknown.
        ModelRefused: the job names another model.
    """

    def __init__(
        self,
        profile: str,
        variant: str | None = None,
        *,
        expected_digest: bytes | None = None,
        blobs: Blobs = NO_BLOBS,
    ) -> None:
        super().__init__(RENDER, model_digest(), profile, variant, expected_digest=expected_digest)
        self._blobs = blobs
        self._mesh: tuple[bytes, Tree] | None = None

    def decode(self, input: bytes) -> RenderInput:
        """See `Chunkwise`."""
        return decode_input(input)

    def units_total(self, job: RenderInput) -> int:
        """See `Chunkwise`."""
        return job.units_total

    def derive(self, job: RenderInput, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`; a tile needs no other tile."""
        light = radiance(job, job.first_tile + chunk, self._tree(job))
        values = light.flatten().tolist()
        words = shared_exponent(light) if job.is_light else packed(light)
        return Chunk(words, struct.pack(f"<{len(values)}d", *values))

    def produce(self, job: RenderInput, before: Sequence[int], chunk: int) -> Chunk:
        """See `Chunkwise`; the cheater passes the tile on its left off as every second one."""
        copied = self._variant == FABRICATED_TILES and chunk % 2
        return self.derive(job, before, chunk - 1 if copied else chunk)

    def _tree(self, job: RenderInput) -> Tree | None:
        """The job's mesh; it is built once for all of its tiles."""
        name = job.mesh if job.mesh_blob is None else job.mesh_blob.digest
        if not name:
            return None
        if self._mesh is None or self._mesh[0] != name:
            data = job.mesh if job.mesh_blob is None else self._blobs.read(job.mesh_blob)
            self._mesh = name, build_tree(decode_mesh(data))
        tree = self._mesh[1]
        # Another job may look at the same mesh with fewer materials.
        if (last := int(tree.materials.max())) >= len(job.materials):
            raise InputRefused(f"a face has material {last}, there are {len(job.materials)}")
        return tree
