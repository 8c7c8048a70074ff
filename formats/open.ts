import { existsSync } from 'node:fs';
import { isAbsolute, resolve } from 'node:path';
import { SharedBlockCache } from './cache/block-cache.ts';
import type { BlockCache } from './cache/cache.ts';
import { codeOf, ImageError, LunetteError } from './core/errors.ts';
import type { Inflate } from './core/inflate.ts';
import { MiB } from './core/units.ts';
import type { Unpack } from './core/unpack.ts';
import type { FormatDriver, LayerContext, LayerOpenOptions, Secrets } from './driver.ts';
import { ChainImage } from './image/chain.ts';
import { settle } from './image/chain-read.ts';
import { DirectoryGate, isWebAddress, type OpenGate, type ReferenceKind } from './image/gate.ts';
import type { Layer } from './image/layer.ts';
import { checkParentIds } from './image/parent.ts';
import { DRIVERS, driverOf, probe } from './registry.ts';
import { openFileStorage } from './storage/file.ts';
import { writerNotice, writerOf } from './storage/lock-holders.ts';
import type { LockMode, Storage, StorageOpener } from './storage/storage.ts';

/** Longest chain of backing files; QEMU has no limit and runs out of descriptors. */
const MAX_DEPTH = 200;

export interface ImageHostOptions {
  /** Shared by all images of the host. Default: a new one of 64 MiB. */
  cache?: BlockCache;
  /** How files are opened. Default: plain Node. */
  openStorage?: StorageOpener;
  /** How deflate streams are unpacked. Default: by Node. */
  inflate?: Inflate | undefined;
  /** How many streams are unpacked at once. Default: one at a time, by Node and zstd-napi. */
  unpack?: Unpack | undefined;
  /** Disks are read once, from start to end, in large pieces: compressed clusters that are read as a whole are not kept. Default false. */
  readsOnce?: boolean | undefined;
  /** Judges files that images name. Default: an image's own directory and below, and its backing files' in turn. */
  gate?: OpenGate;
  warn?: (message: string, path: string) => void;
  /** Where relative names of data files are looked for in the second place: QEMU looks nowhere else. Default: nowhere. */
  workingDirectory?: string;
  /** For opens that bring none of their own. */
  secrets?: Secrets;
  drivers?: readonly FormatDriver[];
}

export interface OpenImageOptions {
  /** Trust no probing. */
  format?: string | undefined;
  /** Default false. */
  readOnly?: boolean | undefined;
  /** An internal snapshot (id, then name) instead of the live state; implies readOnly. */
  snapshot?: string | undefined;
  /** `shared` (force-share) reads whatever others do meanwhile. Only for reading. */
  lock?: 'default' | 'shared' | undefined;
  /** Warnings about the image become failures. */
  strict?: boolean | undefined;
  /**
   * What the file stands on, in place of the backing file that it names: a snapshot of another image, say. Belongs to the new image
   * from then on, also when this open fails.
   */
  base?: ChainImage | undefined;
  /** Opens the file without what stands below it: to change what it says of that, not to read the disk. */
  alone?: boolean | undefined;
  /** The parent's path, in place of what the file names or of a search by its ids. It must have those ids all the same. */
  parent?: string | undefined;
  /** A parent with other ids than the child expects is a warning, no error. */
  ignoreCid?: boolean | undefined;
  /** Which file of an archive (OVA) to open. Default: the only disk in it. */
  member?: string | undefined;
  /** Discarded clusters (qcow2) keep their place in the file, which then is not scattered by use; their space goes back all the same. */
  discardNoUnref?: boolean | undefined;
  /** Open for writing although other images stand on this one. */
  force?: boolean | undefined;
  /** Passphrases of encrypted files in the chain. Default: the host's. */
  secrets?: Secrets | undefined;
}

/** A read-only layer that several images of this host stand on. */
interface SharedLayer {
  readonly layer: Promise<Layer>;
  users: number;
}

/**
 * Opens images for one process: one cache, one lock per file, shared base images.
 *
 * A file is open once for writing or any number of times for reading; a base image under many overlays is opened, locked and
 * cached once.
 */
export class ImageHost {
  readonly cache: BlockCache;
  readonly #openStorage: StorageOpener;
  readonly #unpacking: Pick<LayerContext, 'inflate' | 'unpack' | 'readsOnce'>;
  readonly #gate: OpenGate;
  readonly #warn: (message: string, path: string) => void;
  readonly #workingDirectory: string | undefined;
  readonly #drivers: readonly FormatDriver[];
  readonly #secrets: Secrets | undefined;
  /** Storage ids open for writing, with the path they were opened by. */
  readonly #writers = new Map<string, string>();
  /** Storage ids open for reading, with how many opens. */
  readonly #readers = new Map<string, number>();
  /** Layers that are open for writing, by the id of their storage: their snapshots can be opened beside them. */
  readonly #live = new Map<string, Layer>();
  readonly #bases = new Map<string, SharedLayer>();
  readonly #images = new Set<ChainImage>();

  constructor(options: ImageHostOptions = {}) {
    this.cache = options.cache ?? new SharedBlockCache(64 * MiB);
    this.#openStorage = options.openStorage ?? openFileStorage;
    const { inflate, unpack, readsOnce } = options;
    this.#unpacking = { inflate, unpack, readsOnce };
    this.#gate = options.gate ?? new DirectoryGate({ ownDirectory: true });
    this.#warn = options.warn ?? (() => undefined);
    this.#workingDirectory = options.workingDirectory;
    this.#drivers = options.drivers ?? DRIVERS;
    this.#secrets = options.secrets;
  }

  /**
   * Opens an image with everything below it.
   *
   * @throws {LunetteError} NOT_FOUND, ACCESS, LOCKED, DENIED, BAD_HEADER and others, with the path of the file at fault
   */
  async open(path: string, options: OpenImageOptions = {}): Promise<ChainImage> {
    const readOnly = (options.readOnly ?? false) || options.snapshot !== undefined;
    const shared = options.lock === 'shared';
    if (shared && !readOnly)
      throw new LunetteError('INVALID', 'only a read-only open can share the image with writers', { path });
    const releases: (() => Promise<void>)[] = [];
    const { base } = options;
    if (base !== undefined) {
      releases.push(() => base.close());
      this.#images.delete(base); // from now on it closes after what stands on it
    }
    try {
      const top = await this.#openTop(path, readOnly, shared, options);
      releases.push(() => top.close());
      const layers = [top];
      if (base !== undefined) layers.push(...base.layers);
      else if (options.alone !== true) await this.#openParents(layers, releases, shared, options);
      const image: ChainImage = new ChainImage(layers, {
        path,
        readOnly,
        shared,
        release: async () => {
          this.#images.delete(image);
          await settle(releases.map((release) => release()));
        },
      });
      this.#images.add(image);
      if (shared) await this.#tellWriters(layers);
      return image;
    } catch (error) {
      await settle(releases.map((release) => release())).catch(() => undefined);
      if (error instanceof LunetteError) error.path ??= path;
      throw error;
    }
  }

  /** Says of each file of a chain who writes to it. */
  async #tellWriters(layers: readonly Layer[]): Promise<void> {
    for (const { storage } of layers) {
      const writer = await writerOf(storage);
      if (writer !== undefined) this.#warn(writerNotice(writer), storage.path);
    }
  }

  /**
   * Opens one file without following anything it names: to say what it is. Reading guest data through it may fail.
   */
  async openLayer(path: string, options: OpenImageOptions = {}): Promise<Layer> {
    const mode = options.lock === 'shared' ? 'shared' : 'read';
    const storage = await this.#openFile(path, true, mode);
    const { snapshot, member, strict } = options;
    return this.#openDriver(
      storage,
      options.format,
      { readOnly: true, metadataOnly: true, snapshot, member, strict },
      mode,
    );
  }

  /** Closes all images that are still open. */
  async close(): Promise<void> {
    await settle([...this.#images].map((image) => image.close()));
  }

  async #openTop(path: string, readOnly: boolean, shared: boolean, options: OpenImageOptions): Promise<Layer> {
    const mode = shared ? 'shared' : readOnly ? 'read' : 'write';
    const { snapshot, strict, force, member, discardNoUnref } = options;
    const view = snapshot === undefined || shared ? undefined : await this.#viewOf(path, snapshot);
    if (view !== undefined) return view;
    const storage = await this.#openFile(path, readOnly, mode);
    const layer = await this.#openDriver(
      storage,
      options.format,
      { readOnly, snapshot, strict, force, member, discardNoUnref, shared, secrets: options.secrets ?? this.#secrets },
      mode,
    );
    if (!readOnly) this.#live.set(storage.id, layer);
    return layer;
  }

  /** A snapshot of a file that this host has open for writing: a view that shares everything with the live layer. */
  async #viewOf(path: string, snapshot: string): Promise<Layer | undefined> {
    if (this.#live.size === 0) return undefined;
    const storage = await this.#openStorage(path, { readOnly: true }); // tells which file it is
    const live = this.#live.get(storage.id);
    await storage.close();
    return live?.openSnapshot?.(snapshot);
  }

  /** Opens a file with its lock and its entry in the books; both end when the storage closes. */
  async #openFile(path: string, readOnly: boolean, mode: LockMode): Promise<Storage> {
    return this.#enter(await this.#openStorage(path, { readOnly }), readOnly, mode);
  }

  async #enter(storage: Storage, readOnly: boolean, mode: LockMode): Promise<Storage> {
    try {
      this.#admitSharing(storage, readOnly, mode);
      // In the tick in which it was admitted: two opens may wait for their locks at the same time, and not every file has locks.
      this.#entered(storage, readOnly);
      await storage.lock(mode);
    } catch (error) {
      await storage.close();
      throw error;
    }
    return storage;
  }

  /** Locks of two opens in one process do not see each other as others do: who may open what is decided here. */
  #admitSharing(storage: Storage, readOnly: boolean, mode: LockMode): void {
    if (mode === 'shared') return;
    const writer = this.#writers.get(storage.id);
    if (writer !== undefined) {
      throw new ImageError('LOCKED', `this process has it open for writing already, as ${writer}`, {
        path: storage.path,
      });
    }
    if (!readOnly && (this.#readers.get(storage.id) ?? 0) > 0) {
      throw new ImageError('LOCKED', 'this process reads it already, perhaps as the base of another image', {
        path: storage.path,
      });
    }
  }

  /** Enters a storage into the books until it closes. */
  #entered(storage: Storage, readOnly: boolean): void {
    if (readOnly) this.#readers.set(storage.id, (this.#readers.get(storage.id) ?? 0) + 1);
    else this.#writers.set(storage.id, storage.path);
    const close = storage.close.bind(storage);
    let closing: Promise<void> | undefined;
    storage.close = () => {
      closing ??= close().finally(() => {
        if (!readOnly) {
          this.#writers.delete(storage.id);
          this.#live.delete(storage.id);
        } else {
          const left = (this.#readers.get(storage.id) ?? 1) - 1;
          if (left > 0) this.#readers.set(storage.id, left);
          else this.#readers.delete(storage.id);
        }
      });
      return closing;
    };
  }

  /** @param mode the lock that the file has: further files that are only read get the same, unless it is for writing */
  async #openDriver(
    storage: Storage,
    format: string | undefined,
    options: Omit<LayerOpenOptions, 'context'>,
    mode: LockMode,
  ): Promise<Layer> {
    let driver: FormatDriver;
    try {
      driver =
        format === undefined ? await probe(storage, this.#drivers) : driverOf(format, this.#drivers, storage.path);
    } catch (error) {
      await storage.close();
      throw error;
    }
    try {
      return await driver.open(storage, { ...options, context: this.#context(options.strict ?? false, mode) });
    } catch (error) {
      await storage.close(); // the driver has done so; a second close is harmless
      if (error instanceof LunetteError) error.path ??= storage.path;
      throw error;
    }
  }

  #context(strict: boolean, mode: LockMode): LayerContext {
    return {
      cache: this.cache,
      ...this.#unpacking,
      openReferenced: async (reference, from, kind, { readOnly }) => {
        const lock = !readOnly ? 'write' : mode === 'write' ? 'read' : mode;
        const place = this.#resolve(reference, from, kind);
        try {
          return await this.#openFile(place, readOnly, lock);
        } catch (error) {
          const missing = kind === 'data file' && codeOf(error) === 'NOT_FOUND';
          const other = missing ? this.#elsewhere(reference, from) : undefined;
          if (other === undefined) throw error;
          this.#warn(`its data file ${place} is not there: ${other} is taken, as QEMU would from here`, from.path);
          return this.#openFile(other, readOnly, lock);
        }
      },
      warn: (message, from) => {
        if (strict) throw new ImageError('CORRUPT', message, { path: from.path });
        this.#warn(message, from.path);
      },
    };
  }

  async #openParents(
    layers: Layer[],
    releases: (() => Promise<void>)[],
    shared: boolean,
    options: OpenImageOptions,
  ): Promise<void> {
    const strict = options.strict ?? false;
    const seen = new Set<string>();
    for (let child = layers[0] as Layer; child.parent !== undefined; ) {
      seen.add(child.storage.id);
      const maxDepth = this.#drivers.find(({ name }) => name === child.format)?.maxDepth ?? MAX_DEPTH;
      if (layers.length > maxDepth) {
        throw new ImageError('UNSUPPORTED', `its chain of backing files is longer than ${maxDepth}`, {
          path: (layers[0] as Layer).storage.path,
        });
      }
      const path = await this.#parentPath(child, layers.length === 1 ? options.parent : undefined);
      const { layer, release } = await this.#openBase(path, child.parent.format, shared, options).catch(
        (error: unknown) => {
          throw asParentError(error, path, child.storage.path);
        },
      );
      releases.push(release);
      if (seen.has(layer.storage.id)) {
        throw new ImageError('CORRUPT', `its chain of backing files comes back to ${path}`, {
          path: (layers[0] as Layer).storage.path,
        });
      }
      const { storage } = child;
      checkParentIds(child, layer, options.ignoreCid ?? false, (message) =>
        this.#context(strict, 'read').warn(message, storage),
      );
      layers.push(layer);
      child = layer;
    }
  }

  /** Where the parent of a layer is: as the user says, as the file says, or where a search by its ids finds it. */
  async #parentPath(child: Layer, given: string | undefined): Promise<string> {
    if (given !== undefined) return given;
    const reference = child.parent?.path;
    if (reference !== undefined) return this.#resolve(reference, child.storage, 'backing file');
    const driver = driverOf(child.format, this.#drivers, child.storage.path);
    if (driver.findParent === undefined) {
      throw new ImageError('NOT_FOUND', 'its parent is known by an id only, and no way to find it was given', {
        path: child.storage.path,
      });
    }
    return driver.findParent(child, {
      admit: (path, from) => this.#gate.admit(path, from, 'backing file'),
      peek: (path, from) => {
        this.#gate.admit(path, from, 'parent');
        return this.#openStorage(path, { readOnly: true });
      },
    });
  }

  /** Opens a base image, or joins those who have it open. */
  async #openBase(
    path: string,
    format: string | undefined,
    shared: boolean,
    options: OpenImageOptions,
  ): Promise<{ layer: Layer; release: () => Promise<void> }> {
    // The identity is known only once it is open; a second descriptor of a shared file is closed again.
    const storage = await this.#openStorage(path, { readOnly: true });
    const key = `${storage.id} ${format ?? ''} ${shared}`;
    let base = this.#bases.get(key);
    if (base !== undefined) {
      base.users++;
      await storage.close();
    } else {
      base = { layer: this.#openBaseLayer(storage, format, shared, options), users: 1 };
      this.#bases.set(key, base);
    }
    const entry = base;
    const release = async () => {
      if (--entry.users > 0) return;
      if (this.#bases.get(key) === entry) this.#bases.delete(key);
      await (await entry.layer.catch(() => undefined))?.close();
    };
    try {
      return { layer: await entry.layer, release };
    } catch (error) {
      await release();
      throw error;
    }
  }

  async #openBaseLayer(
    storage: Storage,
    format: string | undefined,
    shared: boolean,
    options: OpenImageOptions,
  ): Promise<Layer> {
    const mode = shared ? 'shared' : 'backing';
    const entered = await this.#enter(storage, true, mode);
    return this.#openDriver(
      entered,
      format,
      { readOnly: true, strict: options.strict, shared, secrets: options.secrets ?? this.#secrets },
      mode,
    );
  }

  /** Where a data file with a relative name is if it is in the working directory. */
  #elsewhere(reference: string, from: Storage): string | undefined {
    if (this.#workingDirectory === undefined || isAbsolute(reference)) return undefined;
    const other = resolve(this.#workingDirectory, reference);
    if (!existsSync(other)) return undefined;
    this.#gate.admit(other, from.path, 'data file');
    return other;
  }

  /** The path of a file that an image names, once the gate has let it through. */
  #resolve(reference: string, from: Storage, kind: ReferenceKind): string {
    const plain =
      reference.startsWith('file:') && !reference.startsWith('file://') ? reference.slice('file:'.length) : reference;
    // As QEMU: a colon before the first slash makes it a protocol; ./a:b escapes.
    const protocol = /^([^/]*?):/.exec(plain)?.[1];
    const onServer = isWebAddress(plain);
    if (protocol !== undefined && !onServer) {
      throw new ImageError('UNSUPPORTED', `its ${kind} is ${reference}: ${protocol} is no file`, { path: from.path });
    }
    const path = onServer ? plain : from.resolve(plain);
    this.#gate.admit(path, from.path, kind);
    return path;
  }
}

/** Says whose parent it was that failed. */
function asParentError(error: unknown, path: string, child: string): unknown {
  if (!(error instanceof LunetteError)) return error;
  if (error.code !== 'NOT_FOUND') return error;
  return new ImageError('NOT_FOUND', `its backing file ${path} is not there`, { path: child, cause: error });
}
