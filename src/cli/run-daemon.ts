import { parseConfig, readConfig } from '../daemon/config.ts';
import { dropInFor } from '../daemon/drop-in.ts';
import { LunetteDaemon } from '../daemon/lunette-daemon.ts';
import { SystemdNotifier } from '../daemon/systemd.ts';
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
  let daemon: LunetteDaemon | undefined;
  let reloads = Promise.resolve();
  const reload = (): void => {
    reloads = reloads.then(async () => {
      if (daemon === undefined) return;
      notifier.reloading();
      await follow(daemon, options.config, log);
      notifier.ready(daemon.summary);
    });
  };
  process.on('SIGHUP', reload);
  try {
    daemon = await LunetteDaemon.start(config, log);
    context.stdout.write(`ready (${daemon.summary})\n`);
    notifier.ready(daemon.summary);
    const signal = await stopped;
    notifier.stopping(STOP_MS);
    log.info({ signal }, `${signal}: finishing what is in flight`);
    await reloads;
  } finally {
    process.off('SIGHUP', reload);
    await daemon?.close();
  }
}

/** Reads the configuration anew and does what has changed. One that is wrong changes nothing. */
async function follow(daemon: LunetteDaemon, file: string | undefined, log: Log): Promise<void> {
  if (file === undefined) return;
  try {
    await daemon.reload(await readConfig(file));
  } catch (error) {
    log.error({ error }, `SIGHUP: the configuration stays as it was: ${file}: ${(error as Error).message}`);
  }
}
