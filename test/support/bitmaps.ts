import { openBitmap } from '../../formats/image/bitmaps.ts';
import type { ChainImage } from '../../formats/image/chain.ts';

/** Dirty ranges of a bitmap as texts `START-END`, asked for in small pieces. */
export async function dirtyMap(image: ChainImage, name: string, most = 7): Promise<string[]> {
  const reader = await openBitmap(image, name);
  const ranges: { from: number; to: number }[] = [];
  for (let at = 0; at < reader.size; ) {
    const runs = await reader.runs(at, reader.size - at, most);
    if (runs.length === 0) throw new Error(`no run at ${at}`);
    for (let i = 0; i < runs.length; i += 2) {
      const to = at + (runs[i] as number);
      const last = ranges.at(-1);
      if (runs[i + 1] === 1 && last?.to === at) last.to = to;
      else if (runs[i + 1] === 1) ranges.push({ from: at, to });
      at = to;
    }
  }
  return ranges.map(({ from, to }) => `${from}-${to}`);
}
