import type { BusService } from '../dbus/bus-service.ts';
import { describe, type ServerLog } from './log.ts';

/**
 * The connection to D-Bus, for as long as the process runs: a bus that ends is waited for, disks are served meanwhile.
 *
 * @returns undefined, said in the log, where there is no bus
 */
export async function connectSystemBus(log: ServerLog): Promise<BusService | undefined> {
  try {
    // Loaded here: many a process serves images without a bus.
    const { BusService } = await import('../dbus/bus-service.ts');
    return await BusService.connect({
      lost: (error) =>
        log.warn(
          { error },
          `the connection to D-Bus is lost (${error.message}): targetcli cannot see us until the bus is back`,
        ),
      back: () => log.info({}, 'the connection to D-Bus is back'),
      refused: (error) => log.warn({ error }, `D-Bus is back, but not for us: ${describe(error)}`),
    });
  } catch (error) {
    log.warn({ error }, `targetcli cannot see us: ${describe(error)}`);
    return undefined;
  }
}
