import type { ImageHost } from '../../formats/index.ts';
import { closeInOrder } from './close-in-order.ts';
import type { ConfiguredExport, DaemonConfig } from './config.ts';
import type { ConfigChanges } from './config-changes.ts';
import type { ImageServer } from './image-server.ts';
import type { KernelExport } from './kernel-export.ts';
import { describe, type ServerLog } from './log.ts';
import type { NbdImageServer } from './nbd-image-server.ts';
import type { ExportRequest } from './open-export.ts';
import { readSecret } from './secret.ts';
import { sideBySide } from './side-by-side.ts';

/** Exports that are opened at the same time: a server that does not answer holds up none of the others. */
const OPENED_AT_ONCE = 8;

type Transport = ConfiguredExport['transport'];

/** An export that is served. */
export interface ServedExport {
  readonly entry: ConfiguredExport;
  readonly url: string;
  /** Ends it: others go on. */
  close(): Promise<void>;
}

/** An export of the configuration that is not served, and why. */
export interface FailedExport {
  readonly entry: ConfiguredExport;
  readonly reason: string;
}

/**
 * The exports of a configuration. One that fails is said so in the log, and does not keep the others from being served; one that changes does
 * not interrupt the others.
 */
export class ConfiguredServers {
  readonly #host: ImageHost;
  readonly #log: ServerLog;
  readonly #served = new Map<string, ServedExport>();
  readonly #failed = new Map<string, FailedExport>();
  /** Each while it has exports. */
  #iscsi: ImageServer | undefined;
  #nbd: NbdImageServer | undefined;
  /** Each while it begins to listen, for all exports that wait for it. */
  #starting: { iscsi?: Promise<ImageServer> | undefined; nbd?: Promise<NbdImageServer> | undefined } = {};
  /** Names of all exports, as the configuration has them. */
  #order: readonly string[] = [];
  #turn: Promise<unknown> = Promise.resolve();

  private constructor(host: ImageHost, log: ServerLog) {
    this.#host = host;
    this.#log = log;
  }

  /** @param host opens the images, with the cache that all share; it stays the caller's */
  static async start(config: DaemonConfig, host: ImageHost, log: ServerLog): Promise<ConfiguredServers> {
    const servers = new ConfiguredServers(host, log);
    await servers.#startAll(config.export, config);
    return servers;
  }

  /** What is served, in the order of the configuration. */
  get served(): readonly ServedExport[] {
    const place = ({ entry: { name } }: ServedExport): number => this.#order.indexOf(name);
    return [...this.#served.values()].sort((a, b) => place(a) - place(b));
  }

  get failed(): readonly FailedExport[] {
    return [...this.#failed.values()];
  }

  get iscsi(): ImageServer | undefined {
    return this.#iscsi;
  }

  get nbd(): NbdImageServer | undefined {
    return this.#nbd;
  }

  /** Follows a changed configuration: what has changed is ended and begun anew, its images flushed and closed in between. The rest goes on. */
  apply(config: DaemonConfig, changes: ConfigChanges): Promise<void> {
    return this.#inTurn(() => this.#apply(config, changes));
  }

  async #apply(config: DaemonConfig, changes: ConfigChanges): Promise<void> {
    // All are ended before any is begun: an image may go from one to another.
    const ending = [...changes.removed, ...changes.changed.map(({ from }) => from)];
    for (const { name } of ending) await this.#stop(name);
    await this.#closeUnused();
    const beginning = new Set([...changes.added, ...changes.changed.map(({ to }) => to)].map(({ name }) => name));
    // What failed may have found its file meanwhile.
    const again = ({ name }: ConfiguredExport): boolean => beginning.has(name) || this.#failed.has(name);
    await this.#startAll(config.export.filter(again), config);
  }

  /** Ends one export. It comes back with the next start, or when its configuration changes. @returns false when none of the name is served */
  stop(name: string): Promise<boolean> {
    return this.#inTurn(async () => {
      if (!this.#served.has(name)) return false;
      try {
        await this.#end(name);
      } finally {
        await this.#closeUnused();
      }
      return true;
    });
  }

  close(): Promise<void> {
    return this.#inTurn(() => {
      const names = [...this.#served.keys()].reverse();
      return closeInOrder([
        // Targets of the kernel first: taking them down needs whoever serves their devices. Those of a portal end together.
        ...names
          .filter((name) => this.#served.get(name)?.entry.transport === 'lio')
          .map((name) => () => this.#end(name)),
        () => this.#nbd?.close(),
        () => this.#iscsi?.close(),
      ]);
    });
  }

  /** One change after the other: a server whose only export is still being opened would be taken for unused. */
  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#turn.then(work);
    this.#turn = done.catch(() => undefined);
    return done;
  }

  /** Side by side, but for those of one image, of which the first may lock it, and targets of the kernel, which share its folders. */
  async #startAll(entries: readonly ConfiguredExport[], config: DaemonConfig): Promise<void> {
    this.#order = config.export.map(({ name }) => name);
    const lane = ({ transport, overlay, image }: ConfiguredExport): string =>
      transport === 'lio' ? 'lio' : `file ${overlay ?? image}`;
    await sideBySide(entries, OPENED_AT_ONCE, lane, (entry) => this.#start(entry, config));
    this.#starting = {};
    await this.#closeUnused();
  }

  async #start(entry: ConfiguredExport, config: DaemonConfig): Promise<void> {
    const { name, transport, image } = entry;
    try {
      const served = await this.#serve(entry, config);
      this.#served.set(name, served);
      this.#failed.delete(name);
      this.#log.info({ url: served.url, image }, `${name}: ready ${served.url} (${image})`);
    } catch (error) {
      this.#failed.set(name, { entry, reason: describe(error) });
      this.#log.error({ error, transport, image }, `${name} is not served over ${transport}: ${describe(error)}`);
    }
  }

  async #serve(entry: ConfiguredExport, config: DaemonConfig): Promise<ServedExport> {
    const request = requestOf(entry);
    if (entry.transport === 'iscsi') {
      this.#starting.iscsi ??= this.#iscsi === undefined ? startIscsi(config, this.#host, this.#log) : undefined;
      const server = (this.#iscsi ??= (await this.#starting.iscsi) as ImageServer);
      const { target, url } = await server.add(request);
      return { entry, url, close: () => server.remove(target) };
    }
    if (entry.transport === 'nbd') {
      this.#starting.nbd ??= this.#nbd === undefined ? startNbd(config, this.#host, this.#log) : undefined;
      const server = (this.#nbd ??= (await this.#starting.nbd) as NbdImageServer);
      const { name, url } = await server.add(request);
      return { entry, url, close: () => server.remove(name) };
    }
    const kernel = await startKernel(config, request, this.#host, this.#log);
    return { entry, url: kernel.images[0]?.url ?? '', close: () => kernel.close() };
  }

  async #stop(name: string): Promise<void> {
    this.#failed.delete(name);
    try {
      await this.#end(name);
    } catch (error) {
      this.#log.error({ error }, `${name}: ending it: ${describe(error)}`);
    }
  }

  async #end(name: string): Promise<void> {
    const served = this.#served.get(name);
    this.#served.delete(name);
    await served?.close();
  }

  /** A port is held only while there is something behind it. */
  async #closeUnused(): Promise<void> {
    const unused = (transport: Transport): boolean =>
      ![...this.#served.values()].some(({ entry }) => entry.transport === transport);
    const [iscsi, nbd] = [this.#iscsi, this.#nbd];
    if (iscsi !== undefined && unused('iscsi')) {
      this.#iscsi = undefined;
      await iscsi.close();
    }
    if (nbd !== undefined && unused('nbd')) {
      this.#nbd = undefined;
      await nbd.close();
    }
  }
}

// Each is loaded when the configuration has exports for it.

async function startIscsi(config: DaemonConfig, host: ImageHost, log: ServerLog): Promise<ImageServer> {
  const { ImageServer } = await import('./image-server.ts');
  return ImageServer.start({
    exports: [],
    host,
    log,
    listen: config.iscsi.listen,
    measured: true,
    stateDirectory: config['state-directory'],
    ...(await accessOf(config.iscsi, log)),
  });
}

async function startNbd(config: DaemonConfig, host: ImageHost, log: ServerLog): Promise<NbdImageServer> {
  const { NbdImageServer } = await import('./nbd-image-server.ts');
  const { socket, listen } = config.nbd;
  const { 'tls-cert': cert, 'tls-key': key, 'tls-ca': ca, 'tls-psk-file': psk } = config.nbd;
  const withTls = [cert, key, ca, psk].some((file) => file !== undefined);
  return NbdImageServer.start({
    exports: [],
    host,
    log,
    listen: socket === undefined ? listen : { path: socket },
    tls: withTls ? { cert, key, ca, psk } : undefined,
    tlsRequired: config.nbd['tls-required'],
  });
}

/** Of targets of the kernel each is on its own. */
async function startKernel(
  config: DaemonConfig,
  request: ExportRequest,
  host: ImageHost,
  log: ServerLog,
): Promise<KernelExport> {
  const { KernelExport } = await import('./kernel-export.ts');
  return KernelExport.start({
    exports: [request],
    host,
    log,
    fabric: config.lio.fabric,
    listen: config.lio.listen,
    ...(await accessOf(config.lio, log)),
  });
}

function requestOf(entry: ConfiguredExport): ExportRequest {
  const { name, image, format, snapshot, overlay, optical } = entry;
  const readOnly = entry['read-only'] ? true : undefined;
  const secretFile = entry['secret-file'] === undefined ? undefined : [entry['secret-file']];
  const discardNoUnref = entry['discard-no-unref'] ? true : undefined;
  const same = { name, image, format, snapshot, readOnly, overlay, optical, secretFile, discardNoUnref };
  return { ...same, blockSize: entry['block-size'] };
}

/** Who may log in. */
async function accessOf(section: DaemonConfig['iscsi'] | DaemonConfig['lio'], log: ServerLog) {
  const warn = (text: string): void => log.warn({}, text);
  const credentials = async (user: string | undefined, file: string | undefined) =>
    user === undefined || file === undefined ? undefined : { user, secret: await readSecret(file, warn) };
  return {
    chap: await credentials(section['chap-user'], section['chap-secret-file']),
    mutualChap: await credentials(section['mutual-chap-user'], section['mutual-chap-secret-file']),
    allowedInitiators: section['allow-initiators'].length === 0 ? undefined : section['allow-initiators'],
  };
}
