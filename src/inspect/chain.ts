import type { Layer, LayerInfo } from '../../formats/image/layer.ts';
import type { ChainImage, SnapshotInfo } from '../../formats/index.ts';

/** One file of a chain. */
export interface ChainFile {
  readonly path: string;
  readonly format: string;
  /** Guest bytes. */
  readonly virtualSize: number;
  /** Bytes that it takes on the host; undefined when nobody knows. */
  readonly actualSize: number | undefined;
  /** Internal snapshots. */
  readonly snapshots: readonly SnapshotInfo[];
}

/** The files that an open image is made of, top first. */
export async function describeFiles(image: ChainImage): Promise<ChainFile[]> {
  return Promise.all(image.layers.map(describeFile));
}

async function describeFile(layer: Layer): Promise<ChainFile> {
  const info: LayerInfo = await layer.describe();
  return {
    path: layer.storage.path,
    format: layer.format,
    virtualSize: info.virtualSize,
    actualSize: info.actualSize,
    snapshots: info.snapshots ?? [],
  };
}
