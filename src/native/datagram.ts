/** One datagram to a Unix socket, which Node cannot send. */

import { native } from './binding.ts';

/** Sends without waiting; a path that begins with @ is an abstract name. Undefined without the addon. @throws {Error} errno's */
export const sendDatagram: ((path: string, text: string) => number) | undefined = native?.sendDatagram;
