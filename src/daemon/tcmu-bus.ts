import type { ImageHost } from '../../formats/index.ts';
import type { TcmuHandler } from '../dbus/tcmu-objects.ts';
import { changeMedium } from './change-medium.ts';
import { checkConfig } from './check-config.ts';
import { describe } from './log.ts';
import type { TcmuDisk } from './tcmu-disk.ts';
import { handlerDescriptions } from './tcmu-handlers.ts';

/**
 * Our handlers, as they are shown on D-Bus.
 *
 * @param find the disk of a backstore, by its handler and its name
 */
export function busHandlers(
  host: ImageHost,
  find: (handler: string, device: string) => TcmuDisk | undefined,
): TcmuHandler[] {
  return handlerDescriptions().map(({ name, description }) => ({
    name,
    description,
    check: (config, trusted) => checkConfig(host, name, config, trusted),
    changeMedium: async (device, size, config) => {
      const check = (given: string): Promise<string | undefined> => checkConfig(host, name, given, true);
      try {
        return await changeMedium(find(name, device), { handler: name, device, size, config }, check);
      } catch (error) {
        return describe(error);
      }
    },
  }));
}
