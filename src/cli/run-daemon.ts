import { parseConfig, readConfig } from '../daemon/config.ts';
import { SystemdNotifier } from '../daemon/systemd.ts';
import { TcmuService } from '../daemon/tcmu-service.ts';
import { createHost } from '../open/host.ts';
import type { DaemonOptions } from './commands/daemon.ts';
import type { CliContext } from './context.ts';
import { createLog } from './log.ts';

/** What finishing and flushing may take, ms. */
const STOP_MS = 60_000;

/** Serves TCMU devices until a signal comes. */
export async function runDaemon(options: DaemonOptions, context: CliContext): Promise<void> {
  const config = options.config === undefined ? parseConfig('', 'defaults') : await readConfig(options.config);
  const log = createLog(context, { ...options, json: false });
  const notifier = new SystemdNotifier({ ...context.env }, log);
  const stopped = new Promise<string>((resolve) => {
    context.interrupts.once(resolve);
  });
  const host = createHost({
    cacheBytes: config.cache,
    allow: config.allow,
    warn: (message, image) => log.warn({ image }, `${image}: ${message}`),
  });
  try {
    const service = await TcmuService.start({ host, log, unknownHandlers: config.tcmu['unknown-handlers'] });
    context.stdout.write(`ready (${service.disks.length} devices)\n`);
    notifier.ready(`${service.disks.length} devices`);
    const signal = await stopped;
    notifier.stopping(STOP_MS);
    log.info({ signal }, `${signal}: finishing what is in flight`);
    await service.close();
  } finally {
    await host.close();
  }
}
