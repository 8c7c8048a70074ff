import type { BlockCache } from './cache/cache.ts';
import type { Inflate } from './core/inflate.ts';
import type { Unpack } from './core/unpack.ts';
import type { ReferenceKind } from './image/gate.ts';
import type { Layer } from './image/layer.ts';
import type { ParentSearch } from './image/parent.ts';
import type { Storage } from './storage/storage.ts';

/** One image format. The registry is a list of these; adding a format is one folder and one line there. */
export interface FormatDriver {
  /** As in `-f NAME`. */
  readonly name: string;
  /** Longest chain of parents below an image of this format. Default: 200. */
  readonly maxDepth?: number;
  /**
   * Whether a file is of this format, from its first bytes.
   *
   * @param head the first 4 KiB of the file, or all of it when it is shorter
   * @returns 0 for no; the driver with the highest score is taken (raw answers 1 to everything)
   */
  probe(head: Uint8Array): number;
  /**
   * Opens one file as a layer. Takes the storage over: closes it with the layer, and when it throws.
   *
   * @throws {ImageError} BAD_MAGIC, BAD_HEADER, TRUNCATED, UNSUPPORTED, CORRUPT with field and offset; NOT_FOUND for a snapshot
   */
  open(storage: Storage, options: LayerOpenOptions): Promise<Layer>;
  /**
   * Finds the parent of a layer that knows it by ids only.
   *
   * @returns its path, judged by the gate
   * @throws {ImageError} NOT_FOUND saying where it was looked for; DENIED
   */
  findParent?(child: Layer, search: ParentSearch): Promise<string>;
}

/** Passphrases to try on an encrypted image, in this order; each takes its time. Asked for when they are needed. */
export type Secrets = () => Promise<readonly Uint8Array[]>;

export interface LayerOpenOptions {
  readonly readOnly: boolean;
  readonly secrets?: Secrets | undefined;
  /** Open this internal snapshot (id, then name) instead of the live state; read-only. */
  readonly snapshot?: string | undefined;
  /** Warnings about the image become failures. */
  readonly strict?: boolean | undefined;
  /** Others may write to the file while it is open for reading: nothing of it may be kept beyond a request. */
  readonly shared?: boolean | undefined;
  /** Which file of an archive. Default: the only disk in it. */
  readonly member?: string | undefined;
  /** Open for writing although other images stand on this one. */
  readonly force?: boolean | undefined;
  /** Formats that allocate: discarded clusters keep their place in the file, which then is not scattered by use. Default false. */
  readonly discardNoUnref?: boolean | undefined;
  /** Describe only: do not open further files (data files) and do not refuse features that only matter for reading data. */
  readonly metadataOnly?: boolean | undefined;
  readonly context: LayerContext;
}

/** What a layer needs of the process around it. */
export interface LayerContext {
  readonly cache: BlockCache;
  /** Unpacks deflate streams. Default: Node's. */
  readonly inflate?: Inflate | undefined;
  /** Unpacks many streams at once. Default: one at a time, zstd with zstd-napi. */
  readonly unpack?: Unpack | undefined;
  /** Disks are read once, from start to end: what is read as a whole need not be kept. */
  readonly readsOnce?: boolean | undefined;
  /** Opens a further file that the image names (data file, extent): gate, then open, then lock. `reference` as written in the image. */
  openReferenced(
    reference: string,
    from: Storage,
    kind: ReferenceKind,
    options: { readOnly: boolean },
  ): Promise<Storage>;
  /** Something is odd but not fatal. One sentence, without the path. */
  warn(message: string, from: Storage): void;
}

/** An option of new images of one format, as in `-o NAME=VALUE`. */
export interface CreateOption {
  readonly name: string;
  /** How its value is read: `choice` is one of `choices`, a size takes k, M, G, … */
  readonly kind: 'size' | 'number' | 'boolean' | 'string' | 'choice';
  readonly choices?: readonly string[];
  /** What it is when it is not given; undefined: nothing. Shown, and handed to create(). */
  readonly default?: CreateValue;
  /** One line for `-o help`. */
  readonly meaning: string;
}

export type CreateValue = string | number | boolean;
export type CreateValues = Readonly<Record<string, CreateValue | undefined>>;

/** What a new image stands on. */
export interface CreateBacking {
  /** As it shall stand in the image: a relative name is relative to the image. */
  readonly reference: string;
  readonly format: string | undefined;
  /** The ids that it is known by (Layer.ids); undefined when it was not looked at. */
  readonly ids?: Readonly<Record<string, string>> | undefined;
}

export interface CreateRequest {
  /** Guest bytes, as `sizeOf` rounds them. */
  readonly size: number;
  /** Every option of the format that has a value. */
  readonly values: CreateValues;
  readonly backing?: CreateBacking | undefined;
  /** The passphrase of an encrypted image; undefined when none was given. */
  readonly secret?: (() => Promise<Uint8Array | undefined>) | undefined;
  /** Makes an empty file beside the image, locked for writing; whoever asks closes it. */
  createFile(name: string): Promise<Storage>;
}

/** How new images of a format are made. */
export interface FormatCreator {
  /** As in `-f NAME`. */
  readonly format: string;
  /** In the order in which they are shown. */
  readonly options: readonly CreateOption[];
  /** The disk that is made when `size` bytes are asked for: formats count in sectors. */
  sizeOf(size: number): number;
  /**
   * Writes an empty disk into a storage, whatever that held before. Durable when it is done.
   *
   * @throws {LunetteError} INVALID for options that contradict each other, TOO_LARGE, UNSUPPORTED, NO_SPACE
   */
  create(storage: Storage, request: CreateRequest): Promise<void>;
}
