import { UsageError } from '../../formats/core/errors.ts';
import { isLoopback, parseAddress } from '../daemon/address.ts';
import type { NbdImageServer, NbdImageServerOptions } from '../daemon/nbd-image-server.ts';
import type { ExportRequest } from '../daemon/open-export.ts';
import type { ExportOptions } from './commands/export.ts';
import type { Log } from './log.ts';

/** The well-known port of NBD. */
const NBD_PORT = 10809;

/** Options of a SCSI unit, by their names in ExportOptions. */
const ISCSI_ONLY = {
  oneTarget: '--one-target',
  chap: '--chap',
  chapSecretFile: '--chap-secret-file',
  mutualChap: '--mutual-chap',
  mutualChapSecretFile: '--mutual-chap-secret-file',
  allowInitiator: '--allow-initiator',
  blockSize: '--block-size',
  optical: '--optical',
} as const;

/** Of our own target only: the kernel's has no such, or does it itself. */
const OWN_TARGET_ONLY = {
  removable: '--removable',
  stateDir: '--state-dir',
} as const;

const OWN_SERVERS_ONLY = {
  metrics: '--metrics',
  forceShare: '-U',
  strict: '--strict',
  parent: '--parent',
  ignoreCid: '--ignore-cid',
  force: '--force',
} as const;

const LIO_ONLY = { fabric: '--fabric' } as const;

const NBD_ONLY = {
  socket: '--socket',
  bitmap: '--bitmap',
  tlsCert: '--tls-cert',
  tlsKey: '--tls-key',
  tlsCa: '--tls-ca',
  tlsPskFile: '--tls-psk-file',
  tlsRequired: '--tls-required',
} as const;

const NOT_FOR = {
  iscsi: [
    [NBD_ONLY, 'nbd'],
    [LIO_ONLY, 'lio'],
  ],
  nbd: [
    [ISCSI_ONLY, 'iscsi'],
    [OWN_TARGET_ONLY, 'iscsi'],
    [LIO_ONLY, 'lio'],
  ],
  lio: [
    [NBD_ONLY, 'nbd'],
    [OWN_TARGET_ONLY, 'iscsi'],
    [OWN_SERVERS_ONLY, 'iscsi'],
  ],
} as const;

/** @throws {UsageError} for options of another transport, which would silently do nothing */
export function checkTransportOptions(options: ExportOptions): void {
  for (const [names, transport] of NOT_FOR[options.transport]) {
    for (const [key, option] of Object.entries(names)) {
      if (options[key as keyof ExportOptions] === undefined) continue;
      throw new UsageError('USAGE', `${option} is for --transport ${transport}`);
    }
  }
  if (options.socket !== undefined && options.listen !== undefined) {
    throw new UsageError('USAGE', '--socket and --listen say two places to listen');
  }
}

/** What the NBD server gets of the command line. */
export function nbdSettings(
  exports: readonly ExportRequest[],
  options: ExportOptions,
  log: Log,
): Omit<NbdImageServerOptions, 'metrics'> {
  const listen =
    options.socket === undefined ? parseAddress(options.listen ?? '127.0.0.1', NBD_PORT) : { path: options.socket };
  const { tlsCert: cert, tlsKey: key, tlsCa: ca, tlsPskFile: psk } = options;
  const withTls = [cert, key, ca, psk].some((file) => file !== undefined);
  const proves = options.tlsRequired === true && (ca !== undefined || psk !== undefined);
  if ('host' in listen && !isLoopback(listen.host) && !proves) {
    const does = options.readOnly === true ? 'read' : 'read and write';
    log.warn(
      {},
      `anybody who reaches ${listen.host} can ${does} these images: add --tls-required with --tls-psk-file, or with --tls-cert, --tls-key and --tls-ca`,
    );
  }
  return {
    exports,
    listen,
    name: options.name,
    tls: withTls ? { cert, key, ca, psk } : undefined,
    tlsRequired: options.tlsRequired,
    cacheBytes: options.cache,
    allow: options.allow,
    allowAny: options.allowAny,
    log,
  };
}

/** How clients attach to what is served: a few lines for people. */
export function howToAttachNbd(server: Pick<NbdImageServer, 'images' | 'address' | 'snapshotNames'>): string {
  const [first] = server.images;
  if (first === undefined) return '';
  const { address } = server;
  const quoted = `'${first.url.replaceAll("'", "'\\''")}'`;
  const where = 'path' in address ? `-unix ${address.path}` : `${address.host} ${address.port}`;
  const snapshots = server.snapshotNames;
  return `${[
    '',
    ...(snapshots.length === 0
      ? []
      : [`Snapshots: ${snapshots.slice(0, 8).join(', ')}${snapshots.length > 8 ? ', …' : ''}`]),
    'To attach:',
    `  libnbd   nbdinfo ${quoted}`,
    `  QEMU     qemu-system-x86_64 -m 1G -drive file=${quoted},format=raw,if=virtio`,
    `  Linux    sudo nbd-client ${where} -N ${first.name} /dev/nbd0`,
    `  copy     nbdcopy ${quoted} disk.raw`,
    ...('host' in address && isLoopback(address.host)
      ? ['From other machines: --listen 0.0.0.0:10809 with --tls-required and --tls-psk-file FILE.']
      : []),
    'Ctrl-C ends it.',
    '',
  ].join('\n')}\n`;
}
