import type { BitmapReader } from '../../formats/image/bitmaps.ts';
import type { Image } from '../../formats/image/image.ts';
import {
  FLAG_CAN_MULTI_CONN,
  FLAG_HAS_FLAGS,
  FLAG_READ_ONLY,
  FLAG_SEND_CACHE,
  FLAG_SEND_DF,
  FLAG_SEND_FAST_ZERO,
  FLAG_SEND_FLUSH,
  FLAG_SEND_FUA,
  FLAG_SEND_TRIM,
  FLAG_SEND_WRITE_ZEROES,
  type ReplyMode,
  SIMPLE,
} from './protocol.ts';

/** An image under a name. */
export interface NbdExport {
  readonly name: string;
  /** For people, in LIST and INFO. */
  readonly description: string;
  readonly image: Image;
  readonly readOnly: boolean;
  /** Dirty bitmaps that clients can ask for, as `qemu:dirty-bitmap:NAME`. */
  readonly bitmaps?: readonly BitmapReader[];
}

type ExportNames = readonly Pick<NbdExport, 'name' | 'description'>[];

/** What a server has to offer. */
export interface ExportCatalog {
  /** Names and descriptions, in the order to be listed. */
  list(): ExportNames | Promise<ExportNames>;
  /** Looks an export up, opening it if need be; '' stands for the default one. */
  find(name: string): NbdExport | undefined | Promise<NbdExport | undefined>;
  /** No client uses an export any more that `find` gave. */
  released?(found: NbdExport): void;
}

/** Smallest preferred block size: a page. */
const PAGE = 4096;

/** The transmission flags of an export. All connections see one image with one cache: CAN_MULTI_CONN holds always. */
export function transmissionFlags({ image, readOnly }: NbdExport, mode: ReplyMode): number {
  let flags = FLAG_HAS_FLAGS | FLAG_SEND_FLUSH | FLAG_SEND_FUA | FLAG_CAN_MULTI_CONN | FLAG_SEND_CACHE;
  if (mode !== SIMPLE) flags |= FLAG_SEND_DF;
  if (readOnly) return flags | FLAG_READ_ONLY;
  flags |= FLAG_SEND_WRITE_ZEROES;
  if (image.limits.discardUnit > 0) flags |= FLAG_SEND_TRIM;
  if (image.limits.zeroUnit > 0) flags |= FLAG_SEND_FAST_ZERO;
  return flags;
}

/** Block size that suits an export best: what it allocates in, a power of two of a page or more. */
export function preferredBlockSize({ image }: NbdExport, maxPayload: number): number {
  const unit = image.limits.allocationUnit;
  const power = 2 ** Math.ceil(Math.log2(Math.max(PAGE, unit)));
  return Math.min(power, maxPayload);
}
