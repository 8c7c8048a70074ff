import { closeInOrder } from '../daemon/close-in-order.ts';
import { type DaemonConfig, parseConfig, readConfig } from '../daemon/config.ts';
import { compareConfigs, describeChanges } from '../daemon/config-changes.ts';
import { ConfiguredServers } from '../daemon/configured-servers.ts';
import { dropInFor } from '../daemon/drop-in.ts';
import { SystemdNotifier } from '../daemon/systemd.ts';
import { TcmuService } from '../daemon/tcmu-service.ts';
import { createHost } from '../open/host.ts';
import type { DaemonOptions } from './commands/daemon.ts';
import type { CliContext } from './context.ts';
import { createLog, type Log } from './log.ts';

/** What finishing and flushing may take, ms. */
const STOP_MS = 60_000;

/** Serves TCMU devices, and the exports of the configuration, until a signal comes. SIGHUP reads the configuration anew. */
export async function runDaemon(options: DaemonOptions, context: CliContext): Promise<void> {
  const config = options.config === undefined ? parseConfig('', 'defaults') : await readConfig(options.config);
  if (options.printDropIn === true) {
    context.stdout.write(dropInFor(config, options.config ?? 'defaults'));
    return;
  }
  const log = createLog(context, { ...options, json: false });
  // What the command line says counts more.
  if (options.debug !== true && options.quiet !== true) log.level = config['log-level'];
  const notifier = new SystemdNotifier({ ...context.env }, log);
  const stopped = new Promise<string>((resolve) => {
    context.interrupts.once(resolve, ['SIGINT', 'SIGTERM']);
  });
  const host = createHost({
    cacheBytes: config.cache,
    allow: config.allow,
    warn: (message, image) => log.warn({ image }, `${image}: ${message}`),
  });
  let service: TcmuService | undefined;
  let servers: ConfiguredServers | undefined;
  let reloads = Promise.resolve();
  const reload = (): void => {
    reloads = reloads.then(async () => {
      if (servers !== undefined) running = await follow(running, servers, { options, notifier, log });
      notifier.ready(statusOf(service, servers));
    });
  };
  let running = config;
  process.on('SIGHUP', reload);
  try {
    if (config.tcmu.enable) {
      service = await TcmuService.start({ host, log, unknownHandlers: config.tcmu['unknown-handlers'] });
    }
    servers = await ConfiguredServers.start(config, host, log);
    context.stdout.write(`ready (${statusOf(service, servers)})\n`);
    notifier.ready(statusOf(service, servers));
    const signal = await stopped;
    notifier.stopping(STOP_MS);
    log.info({ signal }, `${signal}: finishing what is in flight`);
    await reloads;
  } finally {
    process.off('SIGHUP', reload);
    // Targets of the kernel first: taking them down needs whoever serves their devices.
    await closeInOrder([async () => servers?.close(), async () => service?.close(), () => host.close()]);
  }
}

/** Reads the configuration anew and does what has changed. One that is wrong changes nothing. @returns what holds now */
async function follow(
  running: DaemonConfig,
  servers: ConfiguredServers,
  { options, notifier, log }: { options: DaemonOptions; notifier: SystemdNotifier; log: Log },
): Promise<DaemonConfig> {
  if (options.config === undefined) return running;
  notifier.reloading();
  try {
    const next = await readConfig(options.config);
    const changes = compareConfigs(running, next);
    const lines = describeChanges(changes);
    log.info(
      {},
      lines.length === 0 ? 'SIGHUP: the configuration has not changed' : 'SIGHUP: the configuration has changed',
    );
    for (const line of lines) log.info({}, line);
    await servers.apply(next, changes);
    return next;
  } catch (error) {
    log.error({ error }, `SIGHUP: the configuration stays as it was: ${options.config}: ${(error as Error).message}`);
    return running;
  }
}

function statusOf(service: TcmuService | undefined, servers: ConfiguredServers | undefined): string {
  const exported = servers?.served.length ?? 0;
  const devices = `${service?.disks.length ?? 0} devices`;
  return exported === 0 ? devices : `${devices}, ${exported} exports`;
}
