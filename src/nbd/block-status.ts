import { ABSENT, DATA, ExtentBuffer, OPAQUE } from '../../formats/image/extent.ts';
import type { Image } from '../../formats/image/image.ts';
import type { NbdExport } from './export.ts';
import { ALLOCATION_ID, FIRST_BITMAP_ID } from './meta-context.ts';
import { STATE_HOLE, STATE_ZERO } from './protocol.ts';

/** Descriptors of one context that a reply has at most: a client asks again from where they end. */
const MAX_DESCRIPTORS = 4096;
/** Descriptors may end early; looking on costs little until so many extents were seen. */
const MAX_EXTENTS = 16 * 1024;

/**
 * What BLOCK_STATUS says of a range: for each context pairs of length and flags, from `offset` on without gaps. May cover less than
 * was asked for, never more.
 *
 * @param one give one descriptor a context (REQ_ONE)
 */
export async function blockStatus(
  { image, bitmaps = [] }: Pick<NbdExport, 'image' | 'bitmaps'>,
  range: { readonly offset: number; readonly length: number },
  contexts: readonly number[],
  one: boolean,
): Promise<number[][]> {
  const mapped = contexts.filter((id) => id < FIRST_BITMAP_ID);
  const ofMap = mapped.length === 0 ? [] : await mapStatus(image, range, mapped, one);
  const found: number[][] = [];
  for (const id of contexts) {
    const bitmap = bitmaps[id - FIRST_BITMAP_ID];
    // Runs say 1 for dirty, which is the flag.
    if (bitmap === undefined) found.push(ofMap.shift() as number[]);
    else found.push(await bitmap.runs(range.offset, range.length, one ? 1 : MAX_DESCRIPTORS));
  }
  return found;
}

async function mapStatus(
  image: Image,
  { offset, length }: { readonly offset: number; readonly length: number },
  contexts: readonly number[],
  one: boolean,
): Promise<number[][]> {
  const extents = new ExtentBuffer(256);
  const found = contexts.map((): number[] => []);
  const full = contexts.map(() => false);
  const end = offset + length;
  let seen = 0;
  for (let at = offset; at < end && seen < MAX_EXTENTS && full.includes(false); at = extents.end) {
    await image.map(at, end - at, extents);
    if (extents.end <= at) break;
    seen += extents.count;
    for (let i = 0; i < extents.count; i++) {
      const size = Math.min(extents.lengths[i] as number, end - (extents.offsets[i] as number));
      contexts.forEach((id, which) => {
        if (full[which] === true) return;
        full[which] = !add(found[which] as number[], size, flagsOf(id, extents, i), one);
      });
    }
  }
  return found;
}

/** Lengthens the last descriptor or adds one. @returns false when this one does not fit any more */
function add(list: number[], length: number, flags: number, one: boolean): boolean {
  const last = list.length - 2;
  if (last >= 0 && list[last + 1] === flags) {
    list[last] = (list[last] as number) + length;
    return true;
  }
  if (list.length >= 2 * (one ? 1 : MAX_DESCRIPTORS)) return false;
  list.push(length, flags);
  return true;
}

function flagsOf(context: number, extents: ExtentBuffer, i: number): number {
  const kind = extents.kinds[i];
  // Zeros have no data to read, whether or not space is kept for them: holes, as QEMU has it.
  if (context === ALLOCATION_ID) return kind === DATA || kind === OPAQUE ? 0 : STATE_HOLE | STATE_ZERO;
  return kind === ABSENT ? 0 : (extents.depths[i] as number) + 1;
}
