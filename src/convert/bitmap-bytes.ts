import { alignUp, divideUp } from '../../formats/core/units.ts';
import type { Layer } from '../../formats/index.ts';

const DIRECTORY_ENTRY = 24;

/**
 * What the dirty bitmaps of a qcow2 image take in one of clusters of `cluster` bytes (default: in itself); undefined for formats and versions that
 * have none.
 */
export async function bitmapBytes(layer: Layer, cluster?: number): Promise<number | undefined> {
  const { format, clusterSize: own, specific, virtualSize } = await layer.describe();
  const clusterSize = cluster ?? own;
  if (format !== 'qcow2' || clusterSize === undefined || specific?.compat !== '1.1') return undefined;
  const bitmaps = (specific.bitmaps ?? []) as readonly { readonly name: string; readonly granularity: number }[];
  let total = 0;
  let directory = 0;
  for (const { name, granularity } of bitmaps) {
    const clusters = divideUp(divideUp(divideUp(virtualSize, granularity), 8), clusterSize);
    total += clusters * clusterSize + alignUp(clusters * 8, clusterSize);
    directory += alignUp(DIRECTORY_ENTRY + Buffer.byteLength(name), 8);
  }
  return total + alignUp(directory, clusterSize);
}
