/* Browsers refuse workers to pages opened from a file. There, a hidden frame does the work: the search's script runs
   in it, with `postMessage` going to the page. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.srcdoc = "<!doctype html><script>" +
        "self.importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise((done, failed) => {" +
        "const script = document.createElement('script'); script.src = url; script.onload = done; script.onerror = failed;" +
        "document.head.append(script) })), Promise.resolve());" +
        "<\/script><script src=\"" + new URL(url, location).href + "\"><\/script>"
      frame.onload = () => {
        const inside = frame.contentWindow
        inside.postMessage = data => this.answer(data)
        this.deliver = data => inside.dispatchEvent(new inside.MessageEvent("message", { data }))
        this.waiting.splice(0).forEach(data => this.deliver(data))
      }
      document.documentElement.append(frame)
      this.frame = frame
    }
    postMessage(data) {
      this.deliver ? this.deliver(data) : this.waiting.push(data)
    }
    answer(data) {
      const event = new MessageEvent("message", { data })
      this.dispatchEvent(event)
      if (this.onmessage) this.onmessage(event)
    }
    terminate() {
      this.frame.remove()
    }
  }
}
