import { ABSENT, type ChainImage, type ExtentBuffer, type Layer } from '../../formats/index.ts';
import type { DiskSource } from './disk.ts';

/**
 * Tells which extents of a source come from files that the target stands on, too, so that it shows the same without reading either.
 *
 * @returns undefined when the chains have nothing in common
 */
export function unchangedBelow(
  sources: readonly DiskSource[],
  target: ChainImage,
): ((extents: ExtentBuffer, index: number) => boolean) | undefined {
  const layers = sources.length === 1 ? layersOf(sources[0]) : undefined;
  const below = target.layers.slice(1);
  const [base] = below;
  if (layers === undefined || base === undefined) return undefined;
  const depth = layers.findIndex(({ storage }) => storage.id === base.storage.id);
  // All of what follows must be the same as well; and nothing may show that one of the sizes cuts off.
  if (depth < 1 || layers.length - depth !== below.length) return undefined;
  const same = below.every((layer, i) => {
    const other = layers[depth + i] as Layer;
    return other.storage.id === layer.storage.id && other.format === layer.format && other.size === layer.size;
  });
  const upper = layers.slice(0, depth);
  if (!same || upper.some((layer) => layer.size < target.size)) return undefined;
  return (extents, i) => (extents.depths[i] as number) >= depth || extents.kinds[i] === ABSENT;
}

function layersOf(source: DiskSource | undefined): readonly Layer[] | undefined {
  return (source as Partial<ChainImage> | undefined)?.layers;
}
