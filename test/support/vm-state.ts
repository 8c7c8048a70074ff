/** Images with a snapshot in which QEMU saved a machine. */

import { IoVec } from '../../formats/core/iov.ts';
import { KiB } from '../../formats/core/units.ts';
import { createSnapshot } from '../../formats/image/snapshots.ts';
import { MemoryStorage } from '../../formats/storage/memory.ts';
import { Qcow2File } from './qcow2-file.ts';
import { createImage, openImage } from './qcow2-images.ts';

const CLUSTER = 4 * KiB;
/** What one L1 entry maps: 512 clusters. */
const COVERAGE = CLUSTER * 512;

/**
 * An image with a snapshot that has a VM state, as QEMU lays it out: behind the disk, from the next L1 entry on. Made from a larger disk, whose
 * header and snapshot then say that it is smaller.
 */
export async function withVmState(state: Uint8Array, disk: number): Promise<MemoryStorage> {
  const storage = await createImage({
    size: COVERAGE + state.length + CLUSTER - (state.length % CLUSTER),
    clusterSize: CLUSTER,
  });
  const image = await openImage(storage);
  await image.writev(0, IoVec.of(new Uint8Array(disk).fill(7)));
  await image.writev(COVERAGE, IoVec.of(state));
  await createSnapshot(image, 'running');
  await image.close();
  const file = new Qcow2File(storage.toBytes());
  const at = Number(file.u64(64));
  file.setU64(24, BigInt(disk));
  file.setU64(at + 40, BigInt(state.length));
  file.setU64(at + 48, BigInt(disk));
  return new MemoryStorage({ bytes: file.bytes });
}
