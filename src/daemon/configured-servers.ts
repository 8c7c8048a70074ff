import { closeInOrder } from './close-in-order.ts';
import type { ConfiguredExport, DaemonConfig } from './config.ts';
import type { ConfigChanges } from './config-changes.ts';
import { describe, type ServerLog } from './log.ts';
import type { ExportRequest } from './open-export.ts';
import { readSecret } from './secret.ts';

type Transport = ConfiguredExport['transport'];

/** What the servers of all transports have. */
interface RunningServer {
  readonly images: readonly { readonly url: string; readonly request: ExportRequest }[];
  close(): Promise<void>;
}

/** In the order in which they are started; ended in reverse. */
const TRANSPORTS: readonly Transport[] = ['iscsi', 'nbd', 'lio'];

/**
 * The exports of a configuration, a server for each transport that has any. One that fails is said so in the log, and does not keep the
 * others from being served.
 */
export class ConfiguredServers {
  readonly #log: ServerLog;
  readonly #servers = new Map<Transport, RunningServer>();

  private constructor(log: ServerLog) {
    this.#log = log;
  }

  static async start(config: DaemonConfig, log: ServerLog): Promise<ConfiguredServers> {
    const servers = new ConfiguredServers(log);
    for (const transport of TRANSPORTS) await servers.#start(transport, config);
    return servers;
  }

  /** By URL what is served. */
  get urls(): readonly string[] {
    return [...this.#servers.values()].flatMap(({ images }) => images.map(({ url }) => url));
  }

  /**
   * Follows a changed configuration: the server of each transport whose exports have changed is ended and started anew, so that its other
   * initiators have to connect again. Images are flushed and closed in between.
   */
  async apply(config: DaemonConfig, changes: ConfigChanges): Promise<void> {
    const touched = new Set<Transport>();
    for (const { transport } of [...changes.added, ...changes.removed]) touched.add(transport);
    for (const { from, to } of changes.changed) touched.add(from.transport).add(to.transport);
    // All are ended before any is started: an image may go from one to another.
    for (const transport of TRANSPORTS) if (touched.has(transport)) await this.#stop(transport);
    for (const transport of TRANSPORTS) if (touched.has(transport)) await this.#start(transport, config);
  }

  close(): Promise<void> {
    return closeInOrder([...TRANSPORTS].reverse().map((transport) => () => this.#end(transport)));
  }

  async #start(transport: Transport, config: DaemonConfig): Promise<void> {
    const exports = config.export.filter((entry) => entry.transport === transport);
    if (exports.length === 0) return;
    try {
      const server = await START[transport](config, exports.map(requestOf), this.#log);
      this.#servers.set(transport, server);
      for (const { url, request } of server.images) {
        this.#log.info({ url, image: request.image }, `${request.name}: ready ${url} (${request.image})`);
      }
    } catch (error) {
      const names = exports.map(({ name }) => name).join(', ');
      this.#log.error({ error, transport }, `exports over ${transport} are not served (${names}): ${describe(error)}`);
    }
  }

  async #stop(transport: Transport): Promise<void> {
    try {
      await this.#end(transport);
    } catch (error) {
      this.#log.error({ error, transport }, `ending exports over ${transport}: ${(error as Error).message}`);
    }
  }

  async #end(transport: Transport): Promise<void> {
    const server = this.#servers.get(transport);
    this.#servers.delete(transport);
    await server?.close();
  }
}

type Start = (config: DaemonConfig, exports: readonly ExportRequest[], log: ServerLog) => Promise<RunningServer>;

/** Each is loaded when the configuration has exports for it. */
const START: Readonly<Record<Transport, Start>> = {
  iscsi: async (config, exports, log) => {
    const { ImageServer } = await import('./image-server.ts');
    return ImageServer.start({
      exports,
      log,
      listen: config.iscsi.listen,
      cacheBytes: config.cache,
      allow: config.allow,
      stateDirectory: config['state-directory'],
      ...(await accessOf(config.iscsi, log)),
    });
  },
  nbd: async (config, exports, log) => {
    const { NbdImageServer } = await import('./nbd-image-server.ts');
    const { socket, listen } = config.nbd;
    const { 'tls-cert': cert, 'tls-key': key, 'tls-ca': ca, 'tls-psk-file': psk } = config.nbd;
    const withTls = [cert, key, ca, psk].some((file) => file !== undefined);
    return NbdImageServer.start({
      exports,
      log,
      listen: socket === undefined ? listen : { path: socket },
      cacheBytes: config.cache,
      allow: config.allow,
      tls: withTls ? { cert, key, ca, psk } : undefined,
      tlsRequired: config.nbd['tls-required'],
    });
  },
  lio: async (config, exports, log) => {
    const { KernelExport } = await import('./kernel-export.ts');
    return KernelExport.start({
      exports,
      log,
      fabric: config.lio.fabric,
      listen: config.lio.listen,
      allow: config.allow,
      ...(await accessOf(config.lio, log)),
    });
  },
};

function requestOf(entry: ConfiguredExport): ExportRequest {
  const { name, image, format, snapshot, overlay, optical } = entry;
  const readOnly = entry['read-only'] ? true : undefined;
  return { name, image, format, snapshot, readOnly, overlay, optical, blockSize: entry['block-size'] };
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
