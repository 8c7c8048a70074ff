import type { ChainImage } from '../../formats/index.ts';
import type { InspectOptions } from './inspect-file.ts';
import { lookWhileStill } from './still.ts';

/**
 * Looks at images that others may write to, as lookWhileStill: none of the files that they stand on changed meanwhile.
 *
 * @param paths the images; the first is of `options.format`
 */
export async function lookAtChains<T>(
  paths: readonly string[],
  { host, format }: InspectOptions,
  look: () => Promise<T>,
): Promise<T> {
  const chains: ChainImage[] = [];
  try {
    for (const [i, path] of paths.entries()) {
      chains.push(await host.open(path, { readOnly: true, lock: 'shared', format: i === 0 ? format : undefined }));
    }
    const files = chains.flatMap(({ layers }) => layers.map(({ storage }) => storage));
    return await lookWhileStill(files, look);
  } finally {
    for (const chain of chains) await chain.close().catch(() => undefined);
  }
}
